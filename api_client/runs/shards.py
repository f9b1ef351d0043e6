"""Checkpoints that a sharding trainer saved for itself: what they are, and the command that makes weights of them.

Sources: DeepSpeed's ``runtime/engine.py`` (``global_step*`` with ``mp_rank_*`` and ``zero_pp_rank_*`` files; its
``zero_to_fp32.py`` lies beside them), accelerate's ``utils/fsdp_utils.py`` (``pytorch_model_fsdp_*``), and torch's
``distributed.checkpoint`` (``.metadata``, ``__0_0.distcp``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shards:
    """A checkpoint of one training process per part.

    Attributes:
        what: What it is, for a sentence.
        remedy: The command that makes safetensors of it.
    """

    what: str
    remedy: str


_DEEPSPEED = re.compile(r"global_step\d+|(zero_pp_rank_\d+_)?mp_rank_\d+.*\.pt|bf16_zero_pp_rank_.*\.pt")
_FSDP = re.compile(r"pytorch_model_fsdp_\d+|.*\.distcp")


def shards_among(names: Iterable[str], where: str) -> Shards | None:
    """What the names in a directory say of shards; ``None`` where there are none.

    Args:
        names: Names of files and directories, these with or without a slash at the end.
        where: The directory, for the command.
    """
    plain = sorted(name.rstrip("/") for name in names)
    for pattern, describe in ((_DEEPSPEED, _deepspeed), (_FSDP, _fsdp)):
        first = next((name for name in plain if pattern.fullmatch(name)), None)
        if first is not None:
            return describe(first, where)
    return None


def _deepspeed(name: str, where: str) -> Shards:
    top = where if name.startswith("global_step") else where.rpartition("/")[0]
    return Shards(
        f"only DeepSpeed's own shards ({name})",
        f"Consolidate them: python {top}/zero_to_fp32.py {top} {top} --safe_serialization",
    )


def _fsdp(name: str, where: str) -> Shards:
    source, target = (where, where.rpartition("/")[0]) if name.endswith(".distcp") else (f"{where}/{name}", where)
    return Shards(f"only FSDP's own shards ({name})", f"Consolidate them: accelerate merge-weights {source} {target}")

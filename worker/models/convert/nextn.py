"""Extra prediction layers (NextN, MTP): which weights are theirs, and whether they are all there.

Some trainers drop these layers and leave the config as it was. Such a model converts and quantizes and then does not
load (``missing tensor blk.N...``). Where none of the announced layers is there, the count is set to 0; where some are
there and some are not, that is an error. What a job does with them is ``draft_head``'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.convert.consumed import is_of_another_sense

# how such layers are named in checkpoints; the group is the layer's number
_NUMBERED_ON = re.compile(r"(?<![^.])layers\.(\d{1,9})(?=\.)")  # after the ordinary layers
_MTP = re.compile(r"(?<![^.])mtp\.")
_PART = re.compile(r"(?<![^.])mtp(_\w+)?\.")  # ERNIE's are mtp_block, mtp_emb_norm, ...
_MTP_LAYERS = re.compile(r"(?<![^.])mtp\.layers\.(\d{1,9})(?=\.)")
_OF_THEIR_OWN = (_MTP_LAYERS, re.compile(r"(?<![^.])mtp_layers\.(\d{1,9})(?=\.)"), re.compile(r"^mtp\.(\d{1,9})(?=\.)"))
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")  # of a GGUF file
# key in config.json -> patterns that count from the last ordinary layer on, and patterns that count from 0
_ANNOUNCEMENTS: Mapping[str, tuple[tuple[re.Pattern[str], ...], tuple[re.Pattern[str], ...]]] = {
    "num_nextn_predict_layers": ((_NUMBERED_ON,), _OF_THEIR_OWN),
    "mtp_num_hidden_layers": ((), (_MTP_LAYERS,)),
}


def config_without_absent_layers(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Changes that ``config.json`` needs so that it announces no layer that the weights lack.

    Args:
        config: ``config.json``, or its ``text_config``.
        names: All tensor names of the model.

    Returns:
        Keys with their new values; empty where config and weights agree.

    Raises:
        PackagingError: ``base_model_invalid`` where only some of the announced layers are there.
    """
    changes: dict[str, Any] = {}
    for key, (announced, present) in _announced(config, names).items():
        if not present:
            changes[key] = 0
        elif len(present) < announced:
            raise PackagingError(
                ErrorCode.BASE_MODEL_INVALID,
                f"config.json announces {announced} prediction layers ({key}), the weights hold {len(present)} of them",
                remedy=f"Restore the missing layers, set {key} to {len(present)}, or leave them all out with "
                "draft_head `drop`.",
                fields={"key": key, "announced": announced, "present": len(present)},
            )
    return changes


def missing_layers(config: Mapping[str, Any], names: Iterable[str]) -> int:
    """How many of the layers that ``config.json`` announces the weights lack. Arguments as above."""
    return sum(announced - len(present) for announced, present in _announced(config, names).values())


def announced_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Keys of ``config.json``, or of its ``text_config``, that announce such layers, with how many."""
    return {key: count for key in _ANNOUNCEMENTS if type(count := config.get(key)) is int and count > 0}


def prediction_tensors(config: Mapping[str, Any], names: Iterable[str]) -> frozenset[str]:
    """The tensors that belong to prediction layers: blocks of their own, and layers after the ordinary ones.

    The latter count where the config has a word for them, whatever number it says; any other layer too many is a fault.
    """
    ordinary = config.get("num_hidden_layers") if "num_nextn_predict_layers" in config else None
    first = ordinary if isinstance(ordinary, int) else None
    theirs = set()
    for name in names:
        if is_of_another_sense(name):
            continue
        numbers = _NUMBERED_ON.findall(name)
        if _PART.search(name) or (first is not None and any(int(number) >= first for number in numbers)):
            theirs.add(name)
    return frozenset(theirs)


def check_announced(architecture: str, metadata: Mapping[str, Any], names: Iterable[str]) -> int:
    """Refuse a file that announces prediction layers which are not in it: llama.cpp would not load it.

    Args:
        architecture: GGUF architecture.
        metadata: The file's keys with their values.
        names: The file's tensors.

    Returns:
        How many there are.

    Raises:
        PackagingError: ``base_model_invalid`` naming the first block that is missing.
    """
    blocks = _blocks(architecture, metadata)
    count = len(blocks)
    present = {int(match[1]) for name in names if (match := _BLOCK.match(name))}
    missing = next((block for block in blocks if block not in present), None)
    if missing is not None:
        raise PackagingError(
            ErrorCode.BASE_MODEL_INVALID,
            f"the converter announces {count} prediction layers of {architecture}, and the weights hold nothing of "
            f"the one that would be blk.{missing}",
            remedy="Restore the missing layers, or leave them all out with draft_head `drop`.",
            fields={"announced": count, "block": missing},
        )
    return count


def holds_mtp(names: Iterable[str]) -> bool:
    """Whether any tensor belongs to an MTP block, which some converters look for whatever the config says."""
    return any(_MTP.search(name) for name in names)


def of_prediction_layers(architecture: str, metadata: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of a file's tensors that belong to prediction layers. Arguments as :func:`check_announced`."""
    blocks = _blocks(architecture, metadata)
    return [name for name in names if (match := _BLOCK.match(name)) and int(match[1]) in blocks]


def _blocks(architecture: str, metadata: Mapping[str, Any]) -> range:
    """Numbers of the blocks that a file announces as prediction layers: its last ones."""
    count, blocks = (metadata.get(f"{architecture}.{key}") for key in ("nextn_predict_layers", "block_count"))
    return range(blocks - count, blocks) if isinstance(count, int) and isinstance(blocks, int) else range(0)


def _announced(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[int, set[int]]]:
    """Key -> how many layers it announces, and the numbers of those that are there, from 0."""
    names = [name for name in names if not is_of_another_sense(name)]
    ordinary = config.get("num_hidden_layers")
    by_key = {}
    for key, announced in announced_layers(config).items():
        after, own = _ANNOUNCEMENTS[key]
        if isinstance(ordinary, int):
            numbered = _numbers(names, own) | {number - ordinary for number in _numbers(names, after)}
            by_key[key] = (announced, {layer for layer in numbered if 0 <= layer < announced})
    return by_key


def _numbers(names: list[str], patterns: tuple[re.Pattern[str], ...]) -> set[int]:
    return {int(number) for pattern in patterns for name in names for number in pattern.findall(name)}

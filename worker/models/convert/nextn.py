"""Extra prediction layers (NextN, MTP) that ``config.json`` announces and the weights lack.

Some trainers drop these layers and leave the config as it was. Such a model converts and quantizes and then does not
load (``missing tensor blk.N...``). Where none of the announced layers is there, the count is set to 0; where some are
there and some are not, that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError

# how such layers are named in checkpoints; the group is the layer's number
_NUMBERED_ON = re.compile(r"(?<![^.])layers\.(\d{1,9})(?=\.)")  # after the ordinary layers
_MTP = re.compile(r"(?<![^.])mtp\.")
_MTP_LAYERS = re.compile(r"(?<![^.])mtp\.layers\.(\d{1,9})(?=\.)")
_OF_THEIR_OWN = (_MTP_LAYERS, re.compile(r"(?<![^.])mtp_layers\.(\d{1,9})(?=\.)"), re.compile(r"^mtp\.(\d{1,9})(?=\.)"))
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
    names = list(names)
    ordinary = config.get("num_hidden_layers")
    changes: dict[str, Any] = {}
    for key, (after, own) in _ANNOUNCEMENTS.items():
        announced = config.get(key)
        if not isinstance(announced, int) or announced < 1 or not isinstance(ordinary, int):
            continue
        numbered = _numbers(names, own) | {number - ordinary for number in _numbers(names, after)}
        present = {layer for layer in numbered if 0 <= layer < announced}
        if not present:
            changes[key] = 0
        elif len(present) < announced:
            raise PackagingError(
                ErrorCode.BASE_MODEL_INVALID,
                f"config.json announces {announced} prediction layers ({key}), the weights hold {len(present)} of them",
                remedy=f"Restore the missing layers, or set {key} to {len(present)}.",
                fields={"key": key, "announced": announced, "present": len(present)},
            )
    return changes


def holds_mtp(names: Iterable[str]) -> bool:
    """Whether any tensor belongs to an MTP block, which some converters look for whatever the config says."""
    return any(_MTP.search(name) for name in names)


def _numbers(names: list[str], patterns: tuple[re.Pattern[str], ...]) -> set[int]:
    return {int(number) for pattern in patterns for name in names for number in pattern.findall(name)}

"""Extra prediction layers (NextN, MTP) that ``config.json`` announces and the weights lack.

Some trainers drop these layers and leave the config as it was. Such a model converts and quantizes and then does not
load (``missing tensor blk.N...``). Where none of the announced layers is there, the count is set to 0; where some are
there and some are not, that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from api_client.errors import ErrorCode, PackagingError

# key in config.json -> how the layers are named in checkpoints, ``{layer}`` counting from 0 and ``{after}`` from the
# last ordinary layer on
_ANNOUNCEMENTS: Mapping[str, tuple[str, ...]] = {
    "num_nextn_predict_layers": (
        r"(.*\.)?layers\.{after}\.",
        r"(.*\.)?mtp\.layers\.{layer}\.",
        r"(.*\.)?mtp_layers\.{layer}\.",
        r"mtp\.{layer}\.",
    ),
    "mtp_num_hidden_layers": (r"(.*\.)?mtp\.layers\.{layer}\.",),
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
    for key, patterns in _ANNOUNCEMENTS.items():
        announced = config.get(key)
        if not isinstance(announced, int) or announced < 1 or not isinstance(ordinary, int):
            continue
        present = [layer for layer in range(announced) if _has_layer(names, patterns, layer, ordinary)]
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


def _has_layer(names: list[str], patterns: tuple[str, ...], layer: int, ordinary: int) -> bool:
    for pattern in patterns:
        compiled = re.compile(pattern.format(layer=layer, after=ordinary + layer))
        if any(compiled.match(name) for name in names):
            return True
    return False

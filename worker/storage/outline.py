"""A model in object storage as a directory that holds everything but its weights' bytes: enough for sizes.

Weight files get their header and their size; the rest of each is a hole that takes no room on the disk.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.files import RunFiles
from api_client.runs.kinds import MAX_HEADER_BYTES
from worker.storage.selection import wanted_names

_CONFIG = "config.json"
_WEIGHTS = ".safetensors"
_MOST_BYTES = 256 * 2**20
"""Most that one small file may have; the largest tokenizers take a tenth of it."""


def outline(model: RunFiles, directory: Path) -> Path:
    """Make the directory, named like the model, inside an empty one.

    Reads headers and small files only. A weight file that is cut short gets the size it has, so that whoever opens the
    directory finds what is wrong with it.

    Raises:
        PackagingError: ``base_model_not_found`` without a config.json; as ``wanted_names``, and what reading raises.
    """
    sizes = {name: file.size_bytes for name, file in (model.files() or {}).items() if not name.endswith("/")}
    if _CONFIG not in sizes:
        raise PackagingError(
            ErrorCode.BASE_MODEL_NOT_FOUND,
            f"{model.location} holds no base model: it has no {_CONFIG}",
            fields={"path": model.location},
        )
    made = directory / (PurePosixPath(model.location).name or "model")
    for name in wanted_names(sizes, model.location):
        size = sizes[name]
        target = made / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_head(model, name, size) if name.endswith(_WEIGHTS) else _whole(model, name, size))
        os.truncate(target, size)
    return made


def _head(model: RunFiles, name: str, size: int) -> bytes:
    """The header of a safetensors file, its length included."""
    prefix = model.read(name, 0, min(8, size))
    length = int.from_bytes(prefix, "little")
    return prefix + model.read(name, 8, length) if 8 + length <= min(size, MAX_HEADER_BYTES) else prefix


def _whole(model: RunFiles, name: str, size: int) -> bytes:
    if size > _MOST_BYTES:
        raise PackagingError(
            ErrorCode.BASE_MODEL_INVALID,
            f"{model.location}/{name} has {size} bytes, too many for a file of its kind",
            fields={"path": f"{model.location}/{name}", "size_bytes": size},
        )
    return model.read(name, 0, size)

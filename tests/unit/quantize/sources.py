"""Sources made for one test: a few named tensors in a file that the rules take for a small llama."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.metadata import MetadataValue, string_value, uint32_value
from worker.models.gguf.tensors import TensorSpec, normal_shape
from worker.models.gguf.types import GGMLType
from worker.models.gguf.writer import write_gguf

TYPE_OF = {"float32": GGMLType.F32, "float16": GGMLType.F16, "int32": GGMLType.I32}


def save_source(
    path: Path, tensors: Mapping[str, NDArray[np.generic]], extra: Mapping[str, MetadataValue] | None = None
) -> Path:
    """Write arrays, last axis = row, under their names."""
    metadata = {"general.architecture": string_value("llama"), "llama.block_count": uint32_value(2), **(extra or {})}
    pairs = [
        (TensorSpec(name, normal_shape(array.shape[::-1]), TYPE_OF[array.dtype.name]), array)
        for name, array in tensors.items()
    ]
    write_gguf(path, metadata, pairs, durable=False)
    return path


def leftovers(folder: Path) -> list[str]:
    """Names of unfinished files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".partial", ".journal"))

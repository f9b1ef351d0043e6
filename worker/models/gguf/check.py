"""Judges a finished GGUF file: would llama.cpp accept its structure, and is every number in it finite?

Stricter than the reader: the data section must be laid out without gaps, in the order of the list, as llama.cpp
demands.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.finite import first_not_finite
from worker.models.gguf.reader import GGUFFile, invalid, open_gguf
from worker.models.gguf.tensors import TensorInfo, align_up, place_tensors

_SLAB_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """What a sound file holds.

    Attributes:
        size_bytes: Size of the file.
        tensor_count: Number of tensors.
        type_counts: Number of tensors by ggml type name.
    """

    size_bytes: int
    tensor_count: int
    type_counts: dict[str, int]


def check_gguf(path: Path, *, data: bool = True) -> CheckedFile:
    """Check a file's structure and, unless ``data`` is off, all of its numbers; memory of one slab (8 MiB).

    Raises:
        PackagingError: ``gguf_invalid`` for structure, ``weights_not_finite`` with the tensor's name for data.
    """
    with open_gguf(path) as file:
        _check_layout(file)
        if data:
            _check_data(path, file)
        types = Counter(tensor.type.name for tensor in file.tensors)
        return CheckedFile(file.size_bytes, len(file.tensors), dict(sorted(types.items())))


def _check_layout(file: GGUFFile) -> None:
    if not file.tensors:
        raise invalid(file.name, "holds no tensors")
    for tensor, expected in zip(file.tensors, place_tensors(file.tensors, file.alignment), strict=True):
        if tensor.offset != expected.offset:
            raise invalid(
                file.name,
                f"tensor {tensor.name!r} is at offset {tensor.offset}, expected {expected.offset}",
                tensor=tensor.name,
            )
    last = file.tensors[-1]
    end = file.data_offset + last.offset + last.size_bytes
    if file.size_bytes not in (end, align_up(end, file.alignment)):
        raise invalid(file.name, f"is {file.size_bytes} bytes long, but its data ends at {end}")


def _check_data(path: Path, file: GGUFFile) -> None:
    """Stream every tensor through one buffer (not the mapping, so that memory stays small and counted)."""
    buffer = np.empty(_SLAB_BYTES, np.uint8)
    with path.open("rb", buffering=0) as stream:
        for tensor in file.tensors:
            _check_tensor(stream.fileno(), file, tensor, buffer)


def _check_tensor(descriptor: int, file: GGUFFile, tensor: TensorInfo, buffer: NDArray[np.uint8]) -> None:
    block = tensor.type.block_bytes
    step = _SLAB_BYTES // block * block
    for start in range(0, tensor.size_bytes, step):
        part = buffer[: min(step, tensor.size_bytes - start)]
        read = os.preadv(descriptor, [part.data], file.data_offset + tensor.offset + start)
        if read != part.size:
            raise invalid(file.name, f"ended while tensor {tensor.name!r} was read", tensor=tensor.name)
        bad = first_not_finite(tensor.type, part)
        if bad is not None:
            unit = "block" if tensor.type.is_quantized else "element"
            raise PackagingError(
                ErrorCode.WEIGHTS_NOT_FINITE,
                f"{file.name}: tensor {tensor.name!r} ({tensor.type.name}) has a NaN or infinity"
                f" in {unit} {start // block + bad}",
                fields={"file": file.name, "tensor": tensor.name, "type": tensor.type.name},
            )

"""Writes GGUF version 3 files: header bytes for those who place data themselves, and whole small files.

The same input always gives the same bytes. Layout (llama.cpp's ``gguf.h``): header, padding to ``general.alignment``,
then each tensor's data with padding, the last one's included. Reading is in :mod:`worker.models.gguf.reader`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.metadata import Metadata, encode_string, get_value
from worker.models.gguf.reader import ALIGNMENT_KEY, MAGIC
from worker.models.gguf.tensors import DEFAULT_ALIGNMENT, TensorInfo, TensorSpec, align_up, place_tensors
from worker.storage.atomic import AtomicFile

WRITTEN_VERSION = 3


def header_alignment(metadata: Metadata) -> int:
    """The alignment that readers will assume for this metadata."""
    return int(get_value(metadata, ALIGNMENT_KEY, DEFAULT_ALIGNMENT))


def encode_header(metadata: Metadata, tensors: Sequence[TensorInfo]) -> bytes:
    """All bytes before the data section, padding included."""
    parts = [MAGIC, struct.pack("<IQQ", WRITTEN_VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += (encode_string(key), value.encode())
    for tensor in tensors:
        shape = tensor.shape
        parts += (
            encode_string(tensor.name),
            struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type, tensor.offset),
        )
    header = b"".join(parts)
    return header + b"\0" * (align_up(len(header), header_alignment(metadata)) - len(header))


def write_gguf(
    path: Path, metadata: Metadata, tensors: Iterable[tuple[TensorSpec, NDArray[np.generic]]], *, durable: bool = True
) -> None:
    """Write a whole file from arrays in memory: a sibling temporary, fsync, rename.

    Args:
        path: The file to make or to replace.
        metadata: Keys and values in the order they shall have.
        tensors: What the header says of each tensor, and its data (contiguous; of ``size_bytes`` bytes).
        durable: Whether to wait until the bytes are on the disk.

    Raises:
        ValueError: If an array's size is not its tensor's.
        PackagingError: As :class:`~worker.storage.atomic.AtomicFile`; nothing is left behind then.
    """
    pairs = list(tensors)
    alignment = header_alignment(metadata)
    placed = place_tensors((spec for spec, _ in pairs), alignment)
    with AtomicFile(path, durable=durable) as file:
        file.write(encode_header(metadata, placed))
        for spec, data in pairs:
            if data.nbytes != spec.size_bytes:
                raise ValueError(f"{spec.name}: {data.nbytes} bytes given, {spec.size_bytes} expected")
            file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
            file.write(b"\0" * (align_up(data.nbytes, alignment) - data.nbytes))

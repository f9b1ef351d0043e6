"""Importance matrices in GGUF form: read, and written so that llama-quantize accepts them.

Layout, as ``llama-imatrix`` of llama.cpp b11434 defines it: metadata ``general.type`` = ``imatrix``,
``imatrix.datasets`` (strings), ``imatrix.chunk_count`` and ``imatrix.chunk_size`` (uint32; readers demand these
three); for each tensor of the model, in the order of their names, ``NAME.in_sum2`` (float32, ne ``[row length,
matrices]``), ``NAME.counts`` (float32, ne ``[1, matrices]``) and, where they were kept, ``NAME.in_sum``: the sums of
the inputs themselves, laid out as ``in_sum2``. Those, and its ``NAME.stats``, serve statistics that it prints and not
quantization; statistics are neither written nor used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import PackagingError
from worker.models.gguf.metadata import MetadataValue, ValueType, get_value, string_value, uint32_value
from worker.models.gguf.reader import GGUFFile, open_gguf
from worker.models.gguf.tensors import TensorInfo, TensorSpec, normal_shape
from worker.models.gguf.types import GGMLType
from worker.models.gguf.writer import write_gguf
from worker.models.imatrix.sums import ImatrixSums, TensorSums, chunk_number, invalid

DATASETS_KEY = "imatrix.datasets"
CHUNK_COUNT_KEY = "imatrix.chunk_count"
CHUNK_SIZE_KEY = "imatrix.chunk_size"
_SUMS, _COUNTS, _PLAIN = ".in_sum2", ".counts", ".in_sum"


def write_imatrix(path: Path, sums: ImatrixSums) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: if writing fails; nothing is left behind then.
    """
    metadata = {
        "general.type": string_value("imatrix"),
        DATASETS_KEY: MetadataValue.array(ValueType.STRING, sums.datasets),
        CHUNK_COUNT_KEY: uint32_value(sums.chunk_count),
        CHUNK_SIZE_KEY: uint32_value(sums.chunk_tokens),
    }
    tensors: list[tuple[TensorSpec, NDArray[np.generic]]] = []
    for name, entry in sorted(sums.entries.items()):
        matrices, row_length = entry.in_sum2.shape
        tensors.append((_float_spec(name + _SUMS, (row_length, matrices)), entry.in_sum2.astype("<f4")))
        tensors.append((_float_spec(name + _COUNTS, (1, matrices)), entry.counts.astype("<f4")))
        if entry.in_sum is not None:
            tensors.append((_float_spec(name + _PLAIN, (row_length, matrices)), entry.in_sum.astype("<f4")))
    write_gguf(path, metadata, tensors)


def _float_spec(name: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name, normal_shape(shape), GGMLType.F32)


def read_gguf_form(path: Path) -> ImatrixSums:
    """Read a file in GGUF form.

    Raises:
        PackagingError: ``imatrix_invalid``.
    """
    try:
        file = open_gguf(path)
    except PackagingError as error:
        raise invalid(path.name, error.message) from error
    with file:
        missing = [key for key in (DATASETS_KEY, CHUNK_COUNT_KEY, CHUNK_SIZE_KEY) if key not in file.metadata]
        if missing:
            raise invalid(path.name, f"is GGUF but no importance matrix: {', '.join(missing)} missing")
        return ImatrixSums(
            datasets=_datasets(file, path.name),
            chunk_count=chunk_number(get_value(file.metadata, CHUNK_COUNT_KEY), path.name, CHUNK_COUNT_KEY),
            chunk_tokens=chunk_number(get_value(file.metadata, CHUNK_SIZE_KEY), path.name, CHUNK_SIZE_KEY),
            entries=_entries(file, path.name),
        )


def _datasets(file: GGUFFile, name: str) -> tuple[str, ...]:
    value = file.metadata[DATASETS_KEY]
    if not value.is_array or value.type is not ValueType.STRING:
        raise invalid(name, f"{DATASETS_KEY} is not a list of texts")
    return tuple(value.value)


def _entries(file: GGUFFile, name: str) -> dict[str, TensorSums]:
    named = {
        suffix: {tensor.name.removesuffix(suffix) for tensor in file.tensors if tensor.name.endswith(suffix)}
        for suffix in (_SUMS, _COUNTS)
    }
    if unpaired := sorted(named[_SUMS] ^ named[_COUNTS]):
        raise invalid(name, f"{unpaired[0]!r} has sums without counts, or counts without sums", tensor=unpaired[0])
    if not named[_SUMS]:
        raise invalid(name, "holds no entries")
    return {entry_name: _entry(file, name, entry_name) for entry_name in sorted(named[_SUMS])}


def _entry(file: GGUFFile, name: str, tensor: str) -> TensorSums:
    sums = _floats(file, name, file.by_name[tensor + _SUMS])
    counts = _floats(file, name, file.by_name[tensor + _COUNTS])
    if not sums.size or not counts.size or sums.size % counts.size:
        raise invalid(name, f"{tensor!r} has {sums.size} sums and {counts.size} counts", tensor=tensor)
    plain = _floats(file, name, file.by_name[tensor + _PLAIN]) if tensor + _PLAIN in file.by_name else None
    if plain is not None and plain.size != sums.size:
        raise invalid(name, f"{tensor!r} has {sums.size} sums of squares and {plain.size} plain ones", tensor=tensor)
    return TensorSums(sums.reshape(counts.size, -1), counts, None if plain is None else plain.reshape(counts.size, -1))


def _floats(file: GGUFFile, name: str, tensor: TensorInfo) -> NDArray[np.float32]:
    if tensor.type is not GGMLType.F32:
        raise invalid(name, f"{tensor.name!r} is {tensor.type.name}, expected F32", tensor=tensor.name)
    return file.tensor_bytes(tensor).reshape(-1).view("<f4").astype(np.float32)

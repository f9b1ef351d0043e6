"""One safetensors file, described by its header and checked without reading its data.

Format (safetensors README): 8 bytes little-endian header length N, N bytes of JSON, then the data. The JSON maps
tensor names to ``dtype``, ``shape`` and ``data_offsets`` (relative to the data); ``__metadata__`` maps strings to
strings. The reference reader demands that the tensors tile the data without holes or overlap; so does this one.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint.files import parse_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
MAX_DIMENSIONS = 16

# bits per element of every dtype name that the format defines
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
EXPONENTS = "F8_E8M0"
"""A byte that is a power of two: scales, no values."""
FP8_DTYPES = frozenset(name for name in DTYPE_BITS if name.startswith("F8_")) - {EXPONENTS}
FEW_BITS = frozenset(name for name, bits in DTYPE_BITS.items() if bits <= 8 and name != "BOOL")
"""Dtypes of values that mean little without scales."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of one safetensors file.

    Attributes:
        name: Name in the file.
        dtype: Safetensors dtype name, e.g. ``BF16``.
        shape: Dimensions, outermost first.
        file: The file that holds it, symlinks resolved.
        file_name: What the file is called in the model's directory; where a link leads it may be called otherwise.
        start: First byte, counted from the start of the file.
        end: One past the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    file_name: str
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of data as ``dtype``: those of the file, but for a weight that is packed there."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What the header of one file says, after all checks."""

    path: Path
    size_bytes: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]


def read_safetensors_header(
    path: Path, *, name: str | None = None, invalid: ErrorCode = ErrorCode.BASE_MODEL_INVALID
) -> SafetensorsHeader:
    """Read and check the header of ``path``; no tensor data is read.

    Args:
        path: A regular file; resolve and check symlinks before calling.
        name: What it is called where the link to it lies; by default its own name.
        invalid: Code for a header that breaks the format (``adapter_invalid`` for adapter files).

    Raises:
        PackagingError: ``weights_truncated`` where header and file size disagree, else ``invalid``.
    """
    size_bytes, raw = _read_raw(path, invalid)
    header = parse_json(raw, path, invalid)
    if not isinstance(header, dict):
        raise PackagingError(invalid, f"{path}: the safetensors header is not a JSON object")
    data_start = 8 + len(raw)
    metadata = _metadata(header.pop("__metadata__", {}), path, invalid)
    file_name = path.name if name is None else name
    tensors = {key: _entry(key, value, (path, file_name), data_start, invalid) for key, value in header.items()}
    _check_tiling(tensors, path, data_start, size_bytes, invalid)
    return SafetensorsHeader(path=path, size_bytes=size_bytes, metadata=metadata, tensors=tensors)


def _read_raw(path: Path, invalid: ErrorCode) -> tuple[int, bytes]:
    """File size in bytes and the header's JSON bytes."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a FIFO would block the open for ever
            raise PackagingError(invalid, f"{path} is not a regular file")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise PackagingError(
                    ErrorCode.WEIGHTS_TRUNCATED, f"{path} has {size_bytes} bytes; a safetensors file has at least 8"
                )
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise PackagingError(
                    invalid, f"{path}: header of {length} bytes announced, at most {MAX_HEADER_BYTES} are accepted"
                )
            if 8 + length > size_bytes:
                raise PackagingError(
                    ErrorCode.WEIGHTS_TRUNCATED,
                    f"{path}: header of {length} bytes announced, the file has {size_bytes} bytes",
                    fields={"file": path.name, "size_bytes": size_bytes},
                )
            return size_bytes, file.read(length)
    except OSError as error:
        raise PackagingError(invalid, f"{path} cannot be read: {error.strerror}") from error


def _metadata(value: Any, path: Path, invalid: ErrorCode) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise PackagingError(invalid, f"{path}: __metadata__ of the safetensors header is not a map of strings")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(name: str, value: Any, file: tuple[Path, str], data_start: int, invalid: ErrorCode) -> TensorEntry:
    """One checked tensor entry: known dtype, sane shape, offsets of exactly the size that both imply."""
    path, file_name = file
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise PackagingError(invalid, f"{where} lacks dtype, shape or data_offsets, or has more than these")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise PackagingError(invalid, f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise PackagingError(invalid, f"{where} has the impossible shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise PackagingError(invalid, f"{where} has impossible data_offsets {str(offsets)[:80]}")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or begin > end or end - begin != bits // 8:
        raise PackagingError(
            invalid, f"{where} ({dtype} {shape}) needs {bits // 8} bytes, its data_offsets hold {end - begin}"
        )
    return TensorEntry(name, dtype, tuple(shape), path, file_name, data_start + begin, data_start + end)


def _check_tiling(
    tensors: Mapping[str, TensorEntry], path: Path, data_start: int, size_bytes: int, invalid: ErrorCode
) -> None:
    position = data_start
    for entry in sorted(tensors.values(), key=lambda item: (item.start, item.end)):
        if entry.start != position:
            fault = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise PackagingError(invalid, f"{path}: tensor {entry.name[:200]!r} {fault}")
        position = entry.end
    if position != size_bytes:
        raise PackagingError(
            ErrorCode.WEIGHTS_TRUNCATED,
            f"{path}: the header describes {position} bytes, the file has {size_bytes}",
            fields={"file": path.name, "expected_bytes": position, "size_bytes": size_bytes},
        )

"""Reads a GGUF header that anybody may have written.

Nothing in the file is believed before it is checked against the file's size: counts, string lengths, type tags,
extents, offsets. What is wrong raises ``gguf_invalid`` with the file, the key or tensor, and the numbers. Tensor data
is not read here, only located; :mod:`worker.models.gguf.check` judges a finished file, data included. Writing is in
:mod:`worker.models.gguf.writer`.

Accepted: versions 2 and 3 (the same layout), little-endian, any power of two as ``general.alignment``, tensors in any
order and with gaps, trailing padding missing.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.metadata import FIXED_BYTES, TEXT_ERRORS, MetadataValue, ValueType
from worker.models.gguf.tensors import (
    DEFAULT_ALIGNMENT,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    TensorInfo,
    align_up,
    normal_shape,
)
from worker.models.gguf.types import BLOCKS, GGMLType, row_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"

MAX_HEADER_BYTES = 1 << 28
"""Longest header read. Large vocabularies make headers of about 2**25 bytes; more is an attack or a broken length."""

MAX_ENTRIES = 1_000_000
"""Most tensors, and most metadata values, that a header may announce."""

_MIN_VALUE_BYTES = 8 + 1 + 4 + 1  # key length, a key of one byte, type tag, a value of one byte
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # name length, a name of one byte, dimension count, type, offset
_MAX_ELEMENTS = 2**63 - 1


def invalid(name: str, fact: str, **fields: Any) -> PackagingError:
    """A ``gguf_invalid`` that names the file."""
    return PackagingError(ErrorCode.GGUF_INVALID, f"{name}: {fact}", fields={"file": name, **fields})


class GGUFFile:
    """A parsed header, and a way to the tensors' bytes.

    Attributes:
        name: Path of the file, for messages.
        version: GGUF version.
        metadata: Values by key, in file order.
        tensors: Tensors in the order of the list in the file.
        alignment: ``general.alignment``, or 32.
        data_offset: Where the data section begins, in bytes from the start of the file.
        size_bytes: Size of the whole file.

    Args:
        name: Path of the file, for messages.
        buffer: Its bytes; of a file that is not there, its header alone.
        size_bytes: Size of the whole file, where ``buffer`` is its header.
    """

    def __init__(self, name: str, buffer: memoryview, size_bytes: int | None = None) -> None:
        self.name = name
        self.size_bytes = len(buffer) if size_bytes is None else size_bytes
        self._buffer = buffer
        cursor = _Cursor(name, buffer)
        self.version, tensor_count, value_count = _read_counts(cursor)
        self.metadata = _read_metadata(cursor, value_count)
        self.alignment = _alignment(name, self.metadata)
        self.tensors = _read_tensors(cursor, tensor_count)
        self.data_offset = align_up(cursor.position, self.alignment)
        _check_places(self)

    @cached_property
    def header_sha256(self) -> str:
        """Digest of everything before the data section."""
        return hashlib.sha256(self._buffer[: self.data_offset]).hexdigest()

    @cached_property
    def by_name(self) -> dict[str, TensorInfo]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    def tensor_bytes(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """A tensor's data as a read-only view of the file, shape ``(row_count, row_bytes)``, uint8."""
        import numpy as np

        start = self.data_offset + tensor.offset
        flat = np.frombuffer(self._buffer, np.uint8, tensor.size_bytes, start)
        return flat.reshape(tensor.row_count, tensor.row_bytes)

    def close(self) -> None:
        """Let the file go. Views handed out before keep their part of it mapped."""
        self._buffer = memoryview(b"")

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gguf(path: Path) -> GGUFFile:
    """Map a file and parse its header.

    Raises:
        PackagingError: ``gguf_invalid`` if it cannot be opened or is not a sound GGUF file.
    """
    try:
        if not path.is_file():  # opening a FIFO would block
            raise invalid(str(path), "is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            size = path.stat().st_size
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except (OSError, ValueError) as error:
        raise invalid(str(path), f"cannot be opened: {error}") from error
    return GGUFFile(str(path), memoryview(mapped))


class _Cursor:
    """Walks the buffer; every step is checked against its end."""

    def __init__(self, name: str, buffer: memoryview) -> None:
        self.name = name
        self.buffer = buffer
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self.buffer) - self.position

    def take(self, size: int, what: str) -> int:
        """Step over ``size`` bytes and return where they began."""
        if size > self.remaining:
            raise invalid(
                self.name,
                f"ends inside {what}: {size} bytes needed at byte {self.position}, {self.remaining} left",
                size_bytes=len(self.buffer),
            )
        start = self.position
        self.position += size
        if self.position > MAX_HEADER_BYTES:
            raise invalid(
                self.name, f"has a header of more than {MAX_HEADER_BYTES} bytes: {what} ends at {self.position}"
            )
        return start

    def unpack(self, code: str, what: str) -> tuple[Any, ...]:
        start = self.take(struct.calcsize(code), what)
        return struct.unpack_from(code, self.buffer, start)

    def string(self, what: str) -> bytes:
        (length,) = self.unpack("<Q", what)
        start = self.take(length, what)
        return bytes(self.buffer[start : start + length])


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    """Magic, version and the two counts."""
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC:
        raise invalid(cursor.name, f"does not begin with GGUF but with {magic!r}")
    cursor.take(4, "the magic")
    (version,) = cursor.unpack("<I", "the version")
    if version & 0xFFFF == 0 and version:
        raise invalid(cursor.name, "is a big-endian GGUF file; only little-endian files are read")
    if version not in VERSIONS:
        raise invalid(cursor.name, f"has GGUF version {version}; versions 2 and 3 are read", version=version)
    tensor_count, value_count = cursor.unpack("<QQ", "the counts")
    needed = tensor_count * _MIN_TENSOR_BYTES + value_count * _MIN_VALUE_BYTES
    if needed > cursor.remaining or max(tensor_count, value_count) > MAX_ENTRIES:
        raise invalid(
            cursor.name,
            f"announces {tensor_count} tensors and {value_count} metadata values in {cursor.remaining} bytes",
        )
    return version, tensor_count, value_count


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for index in range(count):
        raw_key = cursor.string(f"metadata key {index}")
        key = raw_key.decode("utf-8", TEXT_ERRORS)
        if not raw_key or b"\0" in raw_key:
            raise invalid(cursor.name, f"metadata key {index} is {key!r}")
        if key in metadata:
            raise invalid(cursor.name, f"metadata key {key!r} stands twice", key=key)
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: _Cursor, key: str) -> MetadataValue:
    what = f"the value of {key!r}"
    (tag,) = cursor.unpack("<I", what)
    is_array = tag == ValueType.ARRAY
    count = 1
    if is_array:
        tag, count = cursor.unpack("<IQ", what)
    try:
        kind = ValueType(tag)
    except ValueError:
        raise invalid(cursor.name, f"{what} has the unknown type {tag}", key=key) from None
    if kind is ValueType.ARRAY:
        raise invalid(cursor.name, f"{what} is an array of arrays", key=key)
    start = cursor.position
    if kind is ValueType.STRING:
        _skip_strings(cursor, count, what)
    else:
        cursor.take(count * FIXED_BYTES[kind], what)
    return MetadataValue(kind, is_array, count, bytes(cursor.buffer[start : cursor.position]))


def _skip_strings(cursor: _Cursor, count: int, what: str) -> None:
    """Step over ``count`` strings: a tight loop, since a vocabulary has a quarter million."""
    if count * 8 > cursor.remaining:
        raise invalid(cursor.name, f"{what} announces {count} strings in {cursor.remaining} bytes")
    buffer, end = cursor.buffer, len(cursor.buffer)
    unpack = struct.Struct("<Q").unpack_from
    position = cursor.position
    for _ in range(count):
        if position + 8 > end:
            cursor.position = position
            cursor.take(8, what)
        length = unpack(buffer, position)[0]
        position += 8 + length
        if position > end:
            cursor.position = position - length
            cursor.take(length, what)
    cursor.take(position - cursor.position, what)


def _alignment(name: str, metadata: dict[str, MetadataValue]) -> int:
    entry = metadata.get(ALIGNMENT_KEY)
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.is_array or entry.type is not ValueType.UINT32:
        raise invalid(name, f"{ALIGNMENT_KEY} is not a uint32")
    alignment = int(entry.value)
    if alignment == 0 or alignment & (alignment - 1):
        raise invalid(name, f"{ALIGNMENT_KEY} is {alignment}, which is not a power of two")
    return alignment


def _read_tensors(cursor: _Cursor, count: int) -> list[TensorInfo]:
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    for index in range(count):
        tensor = _read_tensor(cursor, index)
        if tensor.name in seen:
            raise invalid(cursor.name, f"tensor {tensor.name!r} stands twice", tensor=tensor.name)
        seen.add(tensor.name)
        tensors.append(tensor)
    return tensors


def _read_tensor(cursor: _Cursor, index: int) -> TensorInfo:
    raw_name = cursor.string(f"the name of tensor {index}")
    name = raw_name.decode("utf-8", TEXT_ERRORS)
    if not 0 < len(raw_name) <= MAX_NAME_BYTES or b"\0" in raw_name:
        raise invalid(cursor.name, f"tensor {index} is named {name[:80]!r}: 1 to {MAX_NAME_BYTES} bytes are allowed")
    what = f"tensor {name!r}"
    (dimensions,) = cursor.unpack("<I", what)
    if dimensions > MAX_DIMENSIONS:
        raise invalid(cursor.name, f"{what} has {dimensions} dimensions; at most {MAX_DIMENSIONS}", tensor=name)
    shape = normal_shape(cursor.unpack(f"<{dimensions}Q", what))
    tag, offset = cursor.unpack("<IQ", what)
    try:
        ggml_type = GGMLType(tag)
    except ValueError:
        raise invalid(cursor.name, f"{what} has the unknown type {tag}", tensor=name, type=tag) from None
    _check_shape(cursor.name, name, shape, ggml_type)
    return TensorInfo(name, shape, ggml_type, offset)


def _check_shape(file: str, name: str, shape: tuple[int, ...], ggml_type: GGMLType) -> None:
    """Extents whose product stays below 2**63, with or without zeros among them, and whole blocks in a row."""
    elements = 1
    for extent in shape:
        elements *= max(extent, 1)
    if elements * BLOCKS[ggml_type].size_bytes > _MAX_ELEMENTS:
        raise invalid(file, f"tensor {name!r} has the impossible shape {list(shape)}", tensor=name)
    try:
        row_bytes(ggml_type, shape[0])
    except ValueError as error:
        raise invalid(file, f"tensor {name!r}: {error}", tensor=name) from None


def _check_places(file: GGUFFile) -> None:
    """Offsets are aligned, inside the file, and no two tensors share a byte."""
    available = file.size_bytes - file.data_offset
    end, owner = 0, ""
    for tensor in sorted(file.tensors, key=lambda tensor: tensor.offset):
        what = f"tensor {tensor.name!r} at offset {tensor.offset}"
        if tensor.offset % file.alignment:
            raise invalid(file.name, f"{what} is not aligned to {file.alignment}", tensor=tensor.name)
        if tensor.offset < end and tensor.size_bytes:
            raise invalid(file.name, f"{what} overlaps {owner!r}, which ends at {end}", tensor=tensor.name)
        if tensor.offset + tensor.size_bytes > available:
            raise invalid(
                file.name,
                f"{what} needs {tensor.size_bytes} bytes, but the data section has {max(available, 0)}:"
                " the file is truncated",
                tensor=tensor.name,
                size_bytes=file.size_bytes,
            )
        if tensor.size_bytes:
            end, owner = tensor.offset + tensor.size_bytes, tensor.name

"""GGUF metadata: typed values that keep their exact encoding.

A value is held as the bytes that stand in the file, with its type tag, and decoded only when someone asks. So a file's
metadata can be written again untouched, whatever it holds (text that is not UTF-8, arrays of a quarter million tokens),
and a quantized file costs no decoding of the vocabulary. Layout: llama.cpp's ``gguf.h``, versions 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

TEXT_ERRORS = "surrogateescape"
"""How bytes that are not UTF-8 become text: reversibly."""


class ValueType(IntEnum):
    """Type tag of a metadata value; the number stored in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


STRUCT_CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""``struct`` code of each type of fixed size."""

FIXED_BYTES: dict[ValueType, int] = {kind: struct.calcsize(f"<{code}") for kind, code in STRUCT_CODES.items()}


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """One value.

    Attributes:
        type: Type of the value, or of the elements where ``is_array``.
        is_array: Whether the value is an array.
        count: Number of elements; 1 for a scalar.
        raw: The elements as encoded in the file, little-endian, without type tags and count.
    """

    type: ValueType
    is_array: bool
    count: int
    raw: bytes

    @classmethod
    def scalar(cls, kind: ValueType, value: Any) -> MetadataValue:
        """Encode one number or bool (``STRING``: a text or bytes)."""
        if kind is ValueType.STRING:
            return cls(kind, False, 1, encode_string(value))
        return cls(kind, False, 1, struct.pack(f"<{STRUCT_CODES[kind]}", value))

    @classmethod
    def array(cls, kind: ValueType, values: Sequence[Any]) -> MetadataValue:
        """Encode an array of one element type."""
        if kind is ValueType.STRING:
            return cls(kind, True, len(values), b"".join(encode_string(value) for value in values))
        return cls(kind, True, len(values), struct.pack(f"<{len(values)}{STRUCT_CODES[kind]}", *values))

    @property
    def value(self) -> Any:
        """Python value: int, float, bool, str, or a list of these."""
        if self.type is ValueType.STRING:
            texts = [part.decode("utf-8", TEXT_ERRORS) for part in self.strings()]
            return texts if self.is_array else texts[0]
        values = struct.unpack(f"<{self.count}{STRUCT_CODES[self.type]}", self.raw)
        return list(values) if self.is_array else values[0]

    def strings(self) -> Iterator[bytes]:
        """The undecoded elements of a string or an array of strings."""
        position = 0
        for _ in range(self.count):
            (length,) = struct.unpack_from("<Q", self.raw, position)
            yield self.raw[position + 8 : position + 8 + length]
            position += 8 + length

    def encode(self) -> bytes:
        """Type tags, count and elements, as they follow the key in a file."""
        if self.is_array:
            return struct.pack("<IIQ", ValueType.ARRAY, self.type, self.count) + self.raw
        return struct.pack("<I", self.type) + self.raw


Metadata = Mapping[str, MetadataValue]
"""Keys with their values, in file order."""


def encode_string(value: str | bytes) -> bytes:
    """Length (u64) and bytes of a text."""
    data = value.encode("utf-8", TEXT_ERRORS) if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def string_value(value: str) -> MetadataValue:
    """A metadata string."""
    return MetadataValue.scalar(ValueType.STRING, value)


def uint32_value(value: int) -> MetadataValue:
    """A metadata uint32, the usual type of counts."""
    return MetadataValue.scalar(ValueType.UINT32, value)


def get_value(metadata: Metadata, key: str, default: Any = None) -> Any:
    """Python value of a key, or ``default`` where the key is missing."""
    entry = metadata.get(key)
    return default if entry is None else entry.value

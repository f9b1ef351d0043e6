"""GGUF bytes written by hand, so that a test can make each part wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from worker.models.gguf.reader import GGUFFile


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, tag: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", tag) + value


def tensor(name: str, extents: tuple[int, ...], tag: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, tag, offset)


@dataclass
class File:
    """A small sound file; change a field to break it."""

    magic: bytes = b"GGUF"
    version: int = 3
    pairs: list[bytes] = field(default_factory=lambda: [pair("general.architecture", 8, text("llama"))])
    tensors: list[bytes] = field(default_factory=lambda: [tensor("a", (8, 4), 0, 0), tensor("b", (32,), 0, 128)])
    pair_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32
    data: bytes = bytes(256)

    def __bytes__(self) -> bytes:
        pair_count = len(self.pairs) if self.pair_count is None else self.pair_count
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        head = self.magic + struct.pack("<IQQ", self.version, tensor_count, pair_count)
        head += b"".join(self.pairs) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def parse_gguf(data: bytes, name: str = "buffer") -> GGUFFile:
    """Bytes in memory, read as a file is."""
    return GGUFFile(name, memoryview(data))

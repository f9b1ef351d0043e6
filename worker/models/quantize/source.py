"""What is quantized: a GGUF file, or the shards of one, read as the single file that they were cut from.

Or what reads like one and lies nowhere (``worker.models.convert.unwritten``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import PackagingError
from worker.models.gguf.metadata import Metadata, get_value
from worker.models.gguf.reader import GGUFFile, invalid, open_gguf
from worker.models.gguf.tensors import TensorInfo
from worker.models.quantize.split import shard_path

_SHARD_SUFFIX = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of the source, open."""

    path: Path
    header: GGUFFile
    stream: IO[bytes]
    modified_ns: int


class Source(Protocol):
    """What the pass reads; any number of threads at a time."""

    @property
    def name(self) -> str:
        """What it is called, for messages."""

    @property
    def metadata(self) -> Metadata:
        """Values by key, in file order."""

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """All tensors."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files that it is read from."""

    @property
    def identity(self) -> str:
        """The same as long as nobody writes to the files."""

    def file_of(self, tensor: TensorInfo) -> str:
        """The file that holds a tensor, for messages."""

    def will_read(self, tensors: Sequence[TensorInfo]) -> None:
        """Is told which tensors are read next, in order, every row of each once."""

    def read_rows(self, tensor: TensorInfo, first_row: int, row_count: int) -> NDArray[np.uint8]:
        """Rows as they lie in the file, uint8 ``(row_count, row_bytes)``."""

    def check_unchanged(self) -> None:
        """Refuse what was read while somebody wrote to the files."""


class FileSource:
    """A file or its shards, open.

    Attributes:
        name: Path of the file, or of its first shard, for messages.
        metadata: Values by key, in file order.
        tensors: All tensors; each has the offset it has in its own file.
        paths: The files.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.name = parts[0].header.name
        self.metadata: Metadata = parts[0].header.metadata
        self.tensors: tuple[TensorInfo, ...] = tuple(tensor for part in parts for tensor in part.header.tensors)
        self.paths = [part.path for part in parts]
        self._parts = parts
        self._part_of = {tensor.name: part for part in parts for tensor in part.header.tensors}

    @property
    def identity(self) -> str:
        """The same as long as nobody writes to the files."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(f"{part.header.header_sha256} {part.header.size_bytes} {part.modified_ns}\n".encode())
        return digest.hexdigest()

    def file_of(self, tensor: TensorInfo) -> str:
        """Path of the file that holds a tensor, for messages."""
        return self._part_of[tensor.name].header.name

    def will_read(self, tensors: Sequence[TensorInfo]) -> None:
        """Nothing to be done: the system reads ahead by itself."""

    def check_unchanged(self) -> None:
        """Refuse what was read while somebody wrote to a file.

        Raises:
            PackagingError: ``gguf_invalid``.
        """
        for part in self._parts:
            status = os.fstat(part.stream.fileno())
            if (status.st_size, status.st_mtime_ns) != (part.header.size_bytes, part.modified_ns):
                raise _being_changed(part.path)

    def read_rows(self, tensor: TensorInfo, first_row: int, row_count: int) -> NDArray[np.uint8]:
        """Rows as they lie in the file, uint8 ``(row_count, row_bytes)``; safe to call from many threads.

        Read with pread, not through the mapping: a file cut short meanwhile is an error then, not a killed process.

        Raises:
            PackagingError: ``gguf_invalid`` if the file ends early.
        """
        part = self._part_of[tensor.name]
        raw = np.empty((row_count, tensor.row_bytes), np.uint8)
        view = raw.reshape(-1).data
        position = part.header.data_offset + tensor.offset + first_row * tensor.row_bytes
        done = 0
        while done < raw.nbytes:
            count = os.preadv(part.stream.fileno(), [view[done:]], position + done)
            if count == 0:
                raise invalid(part.header.name, f"ended while tensor {tensor.name!r} was read", tensor=tensor.name)
            done += count
        return raw


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[FileSource]:
    """Open a file; where it is the first of several shards, all of them.

    Raises:
        PackagingError: ``gguf_invalid``, also for a shard that is missing, not the first, or of another file.
    """
    with contextlib.ExitStack() as stack:
        first = _open_part(stack, path)
        count = get_value(first.header.metadata, "split.count", 0)
        parts = [first]
        if isinstance(count, int) and count > 1:
            parts += [_open_part(stack, other) for other in _other_shards(first, count)]
            _check_shards(parts)
        yield FileSource(parts)


def whole_stem(path: Path) -> str:
    """The file's name without its suffix and without what makes it a shard's."""
    return _SHARD_SUFFIX.sub("", path.stem)


def _open_part(stack: contextlib.ExitStack, path: Path) -> _Part:
    header = stack.enter_context(open_gguf(path))
    stream = stack.enter_context(path.open("rb", buffering=0))
    status = os.fstat(stream.fileno())
    if status.st_size != header.size_bytes:
        raise _being_changed(path)
    return _Part(path, header, stream, status.st_mtime_ns)


def _being_changed(path: Path) -> PackagingError:
    return invalid(str(path), "is being changed by somebody else")


def _other_shards(first: _Part, count: int) -> list[Path]:
    number = get_value(first.header.metadata, "split.no", 0)
    if number != 0:
        raise invalid(first.header.name, f"is not the first of its {count} shards; name that one", split_count=count)
    stem = first.path.with_name(whole_stem(first.path))
    if first.path != shard_path(stem, 0, count):
        raise invalid(
            first.header.name,
            f"is the first of {count} shards but not named {shard_path(stem, 0, count).name},"
            " so that the others cannot be found",
            split_count=count,
        )
    return [shard_path(stem, index, count) for index in range(1, count)]


def _check_shards(parts: Sequence[_Part]) -> None:
    """Every shard says its own number, and together they hold each tensor once."""
    for index, part in enumerate(parts):
        stated = tuple(get_value(part.header.metadata, f"split.{key}") for key in ("no", "count"))
        if stated != (index, len(parts)):
            raise invalid(part.header.name, f"says that it is shard {stated[0]} of {stated[1]}, counted from 0")
    names = [tensor.name for part in parts for tensor in part.header.tensors]
    expected = get_value(parts[0].header.metadata, "split.tensors.count", len(names))
    if len(set(names)) != len(names) or len(names) != expected:
        raise invalid(
            parts[0].header.name,
            f"its {len(parts)} shards hold {len(set(names))} tensors, {len(names)} with those that stand twice,"
            f" expected {expected}",
        )

"""Importance matrices in llama.cpp's older form (``imatrix.dat``): read only.

Layout, little-endian int32 throughout: number of entries; per entry the length of the name, the name, ``ncall``, the
number of values, the values (float32, already mean squares times ``ncall``; all matrices of a tensor of experts in
one row); then, in files that have it, the number of chunks, the length of the dataset's name and the name.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.metadata import TEXT_ERRORS
from worker.models.imatrix.sums import ImatrixSums, TensorSums, chunk_number, invalid

_MIN_ENTRY_BYTES = 4 + 1 + 4 + 4 + 4  # a name of one byte and one value
_MAX_NAME_BYTES = 1024


def read_legacy_form(path: Path) -> ImatrixSums:
    """Read a file in legacy form.

    Raises:
        PackagingError: ``imatrix_invalid``.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
    except (OSError, ValueError) as error:
        raise invalid(path.name, f"cannot be opened: {error}") from error
    return _Cursor(path.name, data).read()


class _Cursor:
    """Walks the file; every step is checked against its end."""

    def __init__(self, file: str, data: memoryview) -> None:
        self._file = file
        self._data = data
        self._position = 0

    def read(self) -> ImatrixSums:
        entry_count = self._integer("the number of entries")
        if not 0 < entry_count <= len(self._data) // _MIN_ENTRY_BYTES:
            raise invalid(
                self._file,
                f"is no importance matrix: neither GGUF nor {entry_count} entries in {len(self._data)} bytes",
            )
        tensors: dict[str, TensorSums] = {}
        for index in range(entry_count):
            name = self._text(f"the name of entry {index}", _MAX_NAME_BYTES)
            if not name or name in tensors:
                raise invalid(self._file, f"entry {index} is named {name!r}, which is empty or stands twice")
            tensors[name] = self._entry(name)
        if self._position == len(self._data):
            return ImatrixSums((), 0, 0, tensors)
        chunk_count = chunk_number(self._integer("the number of chunks"), self._file, "the number of chunks")
        dataset = self._text("the name of the dataset", len(self._data))
        return ImatrixSums((dataset,) if dataset else (), chunk_count, 0, tensors)

    def _entry(self, name: str) -> TensorSums:
        calls = chunk_number(self._integer(f"the count of {name!r}"), self._file, f"the count of {name!r}")
        value_count = self._integer(f"the size of {name!r}")
        if value_count < 1:
            raise invalid(self._file, f"{name!r} has {value_count} values", tensor=name)
        start = self._take(4 * value_count, f"the values of {name!r}")
        values: NDArray[np.float32] = np.frombuffer(self._data, "<f4", value_count, start).astype(np.float32)
        # a count of 0 means here that the values are not scaled
        return TensorSums(values.reshape(1, -1), np.array([max(calls, 1)], np.float32))

    def _integer(self, what: str) -> int:
        start = self._take(4, what)
        value: int = struct.unpack_from("<i", self._data, start)[0]
        return value

    def _text(self, what: str, limit_bytes: int) -> str:
        length = self._integer(what)
        if not 0 <= length <= limit_bytes:
            raise invalid(self._file, f"{what} has {length} bytes")
        start = self._take(length, what)
        return bytes(self._data[start : start + length]).split(b"\0", 1)[0].decode("utf-8", TEXT_ERRORS)

    def _take(self, size: int, what: str) -> int:
        start, left = self._position, len(self._data) - self._position
        if size > left:
            raise invalid(self._file, f"ends inside {what}: {size} bytes needed at byte {start}, {left} left")
        self._position += size
        return start

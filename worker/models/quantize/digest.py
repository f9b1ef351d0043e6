"""SHA-256 of a file whose parts are written out of order: parts wait until their turn comes.

So a finished file need not be read again. Whoever brings the part that is next also hashes the ones waiting behind it;
the others go on working.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class OrderedDigest:
    """Digest of a beginning followed by numbered parts; safe to use from many threads.

    Args:
        beginning: A sha256 that has been given what comes before the parts.
        told: Is told after each part its number, on the thread that hashes.
    """

    def __init__(self, beginning: Any, told: Callable[[int], None] | None = None) -> None:
        self._hash = beginning
        self._told = told
        self._next = 0
        self._waiting: dict[int, tuple[NDArray[np.uint8], int]] = {}
        self._hashing = False
        self._changed = threading.Condition()

    def add(self, index: int, data: NDArray[np.uint8], padding: int) -> None:
        """Take part ``index`` (from 0, each exactly once) and the number of zero bytes after it."""
        with self._changed:
            self._waiting[index] = (data, padding)
            if self._hashing:
                return
            self._hashing = True
        while (part := self._take_next()) is not None:
            self._hash.update(part[0].data)
            self._hash.update(bytes(part[1]))
            if self._told is not None:
                self._told(self._next - 1)

    def _take_next(self) -> tuple[NDArray[np.uint8], int] | None:
        with self._changed:
            part = self._waiting.pop(self._next, None)
            if part is None:
                self._hashing = False
            else:
                self._next += 1
            self._changed.notify_all()
            return part

    def wait_below(self, count: int) -> None:
        """Wait until fewer than ``count`` parts that could be hashed wait: keeps memory bounded."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < count or not self._hashing)

    def hexdigest(self) -> str:
        """The digest; all parts must have been added and the adding calls returned."""
        digest: str = self._hash.hexdigest()
        return digest

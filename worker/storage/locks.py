"""Locks between processes: ``flock`` on a file that is never removed. The system frees them when a holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.stop import ShouldStop, StopRequested

_POLL_S = 0.05
_NO_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to the file that is open: one that is locked may have been removed just before."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class FileLock:
    """One hold on a lock file. ``with FileLock(path):`` waits for it.

    Args:
        path: The lock file; made where it is missing.
        shared: Many may hold it at once, but not beside an exclusive holder.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self._path = path
        self._operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The open file that carries the lock; a process that inherits it shares the hold."""
        assert self._descriptor is not None, "not held"
        return self._descriptor

    def try_acquire(self) -> bool:
        """Take the lock if nobody is in the way; true where this object holds it already."""
        if self._descriptor is not None:
            return True
        descriptor = self._open()
        try:
            self._lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _lock(self, descriptor: int) -> None:
        fcntl.flock(descriptor, self._operation | fcntl.LOCK_NB)

    def acquire(self, should_stop: ShouldStop | None = None) -> None:
        """Wait for the lock.

        Raises:
            StopRequested: asked to stop waiting.
        """
        while not self.try_acquire():
            if should_stop is not None and should_stop():
                raise StopRequested
            time.sleep(_POLL_S)

    def release(self) -> None:
        """Give it up; nothing happens where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class DirectoryLock(FileLock):
    """A hold on a directory itself, so that no lock file lies in it.

    Where the file system has no locks for directories (some network ones) it is held in name only.
    """

    def _open(self) -> int:
        return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _lock(self, descriptor: int) -> None:
        try:
            super()._lock(descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

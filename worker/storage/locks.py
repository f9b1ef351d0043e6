"""Locks between processes: ``flock``. The system frees them when a holder dies.

One rule for file systems without locks: :func:`try_lock` holds in name only there, and whoever may act only on what
nobody holds asks :func:`is_surely_free`.
"""

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
_NO_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""How a file system says that it has no locks, or none for directories or files open for reading (network ones)."""


def try_lock(descriptor: int, operation: int = fcntl.LOCK_EX) -> bool:
    """Hold an open file unless somebody else does. Where there are no locks it is held in name only.

    Args:
        descriptor: The open file; closing it gives the lock up.
        operation: ``LOCK_EX`` or ``LOCK_SH``.

    Raises:
        OSError: the file system fails.
    """
    return _taken(descriptor, operation) is not False


def is_surely_free(descriptor: int) -> bool:
    """Whether nobody else holds an open file; it is held then. False where there are no locks, so nobody can tell."""
    return _taken(descriptor, fcntl.LOCK_EX) is True


def _taken(descriptor: int, operation: int) -> bool | None:
    """Whether the lock was got; ``None`` where there are none."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to the file that is open: one that is locked may have been removed just before."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class FileLock:
    """One hold on a lock file, which is never removed. ``with FileLock(path):`` waits for it.

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
        if not try_lock(descriptor, self._operation):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

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
    """A hold on a directory itself, so that no lock file lies in it."""

    def _open(self) -> int:
        return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

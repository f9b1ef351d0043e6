"""Where the fork server's sockets lie: a directory that is removed at a worker's end, or at the start of another.

A killed worker cannot remove its own. Its lock ends with it, by which the next one knows.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from worker.storage.locks import FileLock, is_surely_free

_PREFIX = "tp-"
"""No longer than multiprocessing's own: a socket's path may have 107 bytes, and TMPDIR may be a long one."""
_LOCK = "trainpack.lock"


def socket_directory() -> Path:
    """Make this worker's directory under the system's for temporary files, and remove those of dead ones."""
    _sweep(Path(tempfile.gettempdir()))
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(directory / _LOCK)
    lock.try_acquire()
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)
            lock.release()

    atexit.register(remove)
    return directory


def _sweep(parent: Path) -> None:
    for left in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or just gone
            if left.is_symlink() or left.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if is_surely_free(descriptor):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)

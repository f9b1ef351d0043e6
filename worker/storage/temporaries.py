"""Hidden names beside a final name, and what is left of them when their writer has died."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import time
from pathlib import Path

from worker.storage.locks import is_surely_free

STALE_AFTER_S = 60.0
_CANNOT = frozenset({errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def temporary_name(final: Path) -> Path:
    """A fresh hidden name beside ``final``."""
    return final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")


def remove_stale_temporaries(final: Path, age_s: float | None = None) -> None:
    """Remove what crashed writers of ``final`` left: temporaries that surely nobody holds a lock on.

    Args:
        final: The final name.
        age_s: How long one must have lain still; a minute where not given. Counted from the last change of the inode,
            which making a link renews.
    """
    age_s = STALE_AFTER_S if age_s is None else age_s
    for path in final.parent.glob(f".{glob.escape(final.name)}.????????.tmp"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if is_surely_free(descriptor) and time.time() - os.fstat(descriptor).st_ctime > age_s:
                    path.unlink()
            finally:
                os.close(descriptor)


def fsync_directory(directory: Path) -> None:
    """Wait until a rename in ``directory`` is on the disk, where the file system can say so."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)

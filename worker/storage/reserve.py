"""Reserves a file's whole size on the disk before work starts: a full disk shows at once and not after hours."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def reserve(descriptor: int, size_bytes: int) -> None:
    """Give an open file its size, reading as zeros, with its blocks allocated where the file system can.

    ``posix_fallocate`` is not used: where a file system has no fallocate (NFS before 4.2) glibc imitates it by writing
    to every block of the file.

    Raises:
        OSError: ENOSPC, EDQUOT or EFBIG if the disk, the quota or the file size limit does not allow it.
    """
    os.ftruncate(descriptor, size_bytes)
    fallocate = _fallocate()
    if fallocate is None or not size_bytes:
        return
    while fallocate(descriptor, 0, 0, size_bytes) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


@cache
def _fallocate() -> Any:
    """The C library's fallocate(descriptor, mode, offset, length), or None where there is none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function

"""The edge where the operating system's refusals to write become errors for people."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

from api_client.errors import ErrorCode, PackagingError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, no quota, or a file larger than the file system or a limit allows."""


def described(error: OSError, path: Path, needed_bytes: int) -> PackagingError:
    """What a failed write of ``path`` means: ``disk_space_insufficient`` or ``output_dir_not_writable``."""
    fields: dict[str, Any] = {"path": str(path), "needed_bytes": needed_bytes, "errno": error.errno}
    if error.errno in FULL:
        fields["free_bytes"] = free = shutil.disk_usage(path.parent).free
        fact = f"{path} needs {needed_bytes} bytes, {free} are free: {error.strerror}"
        return PackagingError(ErrorCode.DISK_SPACE_INSUFFICIENT, fact, fields=fields)
    return PackagingError(ErrorCode.OUTPUT_DIR_NOT_WRITABLE, f"{path} cannot be written: {error}", fields=fields)

"""The one edge where the operating system's refusals to write become errors for people.

Nobody else looks at the numbers of a full disk: whoever writes a file does it below :func:`write_errors`, or asks
:func:`write_error` what an error that it has caught means.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.words.formatting import format_size

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, or a file larger than the file system or a limit allows."""
_REFUSED = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    }
)


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that there is no room: disk, quota or largest size of a file."""
    return isinstance(error, OSError) and error.errno in _FULL


def free_bytes(path: Path) -> int:
    """Space that this user may still fill on the disk of ``path``, or of its nearest existing parent."""
    return disk_room(path)[0]


def disk_room(path: Path) -> tuple[int, int]:
    """Bytes that this user may still fill on the disk of ``path``, as :func:`free_bytes`, and the disk's size."""
    info = os.statvfs(existing(path))
    return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize


def on_one_disk(path: Path, other: Path) -> bool:
    """Whether both are, or will be, on one file system."""
    return existing(path).stat().st_dev == existing(other).stat().st_dev


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def write_error(path: Path, error: OSError, needed_bytes: int | None = None) -> PackagingError | None:
    """The project's error for what the system said of writing ``path``; ``None`` where it says nothing of the place.

    Args:
        path: What was to be written.
        error: What the system said.
        needed_bytes: Size of the whole file, where known.
    """
    if is_full(error):
        return no_space(path, error, needed_bytes)
    return _not_writable(path, error) if error.errno in _REFUSED else None


def failed_write(path: Path, error: OSError, needed_bytes: int | None = None) -> PackagingError:
    """As :func:`write_error`, for who knows that the write itself has failed, whatever the number."""
    return write_error(path, error, needed_bytes) or _not_writable(path, error)


@contextlib.contextmanager
def write_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Run a body that writes ``path``; every ``OSError`` of it is one of that write.

    Raises:
        PackagingError: ``disk_space_insufficient``, ``output_dir_not_writable``.
    """
    try:
        yield
    except OSError as error:
        raise failed_write(path, error, needed_bytes) from error


@contextlib.contextmanager
def room_errors(path: Path) -> Iterator[None]:
    """Run a body that writes ``path`` among other things; only a lack of room is taken for an error of the write.

    Raises:
        PackagingError: ``disk_space_insufficient``.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise no_space(path, error) from error


def no_space(path: Path | None, error: OSError | None = None, needed_bytes: int | None = None) -> PackagingError:
    """The error for a write that found no room.

    Args:
        path: What was to be written, where known.
        error: What the system said, where it was asked.
        needed_bytes: Size of the whole file, where known.
    """
    where = str(path) if path is not None else "a file"
    free = None
    if path is not None:
        with contextlib.suppress(OSError):  # a place that may not be looked at
            free = free_bytes(path)
    said = f" ({error.strerror})" if error is not None and error.strerror else ""
    facts = [f"{where}: the disk or quota is full{said}"]
    facts += [f"needed {format_size(needed_bytes)}"] if needed_bytes is not None else []
    facts += [f"free {format_size(free)}"] if free is not None else []
    return PackagingError(
        ErrorCode.DISK_SPACE_INSUFFICIENT,
        ", ".join(facts),
        fields={"path": where, "needed_bytes": needed_bytes, "free_bytes": free},
    )


def _not_writable(path: Path, error: OSError) -> PackagingError:
    reason = error.strerror or type(error).__name__
    return PackagingError(
        ErrorCode.OUTPUT_DIR_NOT_WRITABLE,
        f"{path} cannot be written: {reason}",
        fields={"path": str(path), "reason": reason},
    )

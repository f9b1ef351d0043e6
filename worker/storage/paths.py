"""Whether a directory can be written, a bucket may be read, and a disk has room. Paths: ``config.roots``."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import existing, failed_write, free_bytes
from api_client.words.formatting import format_size
from config.roots import Roots
from worker.storage.held import HeldDirectory, hold_made

_NAMELESS_UNKNOWN = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
"""What file systems (NFS) and kernels answer that know no files without a name, open(2)."""


def check_bucket(bucket: str, allowed_buckets: Sequence[str] | None, *, for_writing: bool = False) -> None:
    """Refuse a bucket that jobs may not use; ``None`` allows every one. One bound for reading and writing.

    Raises:
        PackagingError: ``path_not_allowed``.
    """
    verb = "write" if for_writing else "read"
    if allowed_buckets is not None and bucket not in allowed_buckets:
        raise PackagingError(
            ErrorCode.PATH_NOT_ALLOWED,
            f"bucket {bucket} is not one of those this worker may {verb} ({', '.join(allowed_buckets) or 'none'})",
            remedy="Use an allowed bucket, or extend TRAINPACK_ALLOWED_BUCKETS.",
            fields={"bucket": bucket, "allowed_buckets": list(allowed_buckets)},
        )


def ensure_output_dir(path: str | Path, allowed_roots: Roots) -> Path:
    """Create an output directory where it is missing and try to write into it.

    Returns:
        Its real place.

    Raises:
        PackagingError: ``path_not_allowed``, ``output_dir_not_writable``, ``disk_space_insufficient``.
    """
    with open_output_dir(path, allowed_roots) as held:
        return held.path


def open_output_dir(path: str | Path, allowed_roots: Roots) -> HeldDirectory:
    """As :func:`ensure_output_dir`, and hold it open: what becomes of its name since makes no difference."""
    real = allowed_roots.resolve(path, for_writing=True)
    try:
        held = hold_made(real, allowed_roots)
    except OSError as error:
        raise failed_write(real, error) from error
    try:
        _try_to_write(held.descriptor)
    except OSError as error:
        held.undo()
        held.close()
        raise failed_write(real, error) from error
    return held


def _try_to_write(directory: int) -> None:
    """Make a file in an open directory: one without a name, of which nothing is left however the process ends.

    Raises:
        OSError: as the file system has it.
    """
    try:
        os.close(os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory))
    except OSError as error:
        if error.errno not in _NAMELESS_UNKNOWN:
            raise
        probe = f".trainpack-{secrets.token_hex(8)}.tmp"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory))
        os.unlink(probe, dir_fd=directory)


def check_output_dir(path: str | Path, allowed_roots: Roots) -> Path:
    """As :func:`ensure_output_dir`, but leaves no trace: directories made for the trial are removed again."""
    with open_output_dir(path, allowed_roots) as held:
        held.undo()
        return held.path


def check_disk_space(needs: Mapping[Path, int], *, reserve_bytes: int = 0) -> None:
    """Refuse work for which there is no room. Needs on one disk are added up.

    Args:
        needs: Bytes to be written under each path; the paths need not exist.
        reserve_bytes: What shall stay free on each disk.

    Raises:
        PackagingError: ``disk_space_insufficient``, naming the place and both numbers.
    """
    disks: dict[int, list[Path]] = {}
    for path in needs:
        disks.setdefault(existing(path).stat().st_dev, []).append(path)
    for paths in disks.values():
        needed = sum(needs[path] for path in paths)
        free = free_bytes(paths[0])
        if needed > 0 and needed + reserve_bytes > free:
            raise disk_full(paths, needed, free, reserve_bytes)


def disk_full(paths: Iterable[Path], needed_bytes: int, free: int, reserve_bytes: int = 0) -> PackagingError:
    """The error for a disk with too little room."""
    places = [str(path) for path in paths]
    kept = f" (and {format_size(reserve_bytes)} kept free)" if reserve_bytes else ""
    return PackagingError(
        ErrorCode.DISK_SPACE_INSUFFICIENT,
        f"{', '.join(places)}: needed {format_size(needed_bytes)}{kept}, free {format_size(free)}",
        fields={"paths": places, "needed_bytes": needed_bytes, "free_bytes": free, "reserve_bytes": reserve_bytes},
    )

"""Whether a directory can be written, a bucket may be read, and a disk has room. Paths: ``config.roots``."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import existing, failed_write, free_bytes
from api_client.words.formatting import format_size
from config.roots import Roots


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
    real = allowed_roots.resolve(path, for_writing=True)
    _create(real)
    return allowed_roots.resolve(real, for_writing=True)


def check_output_dir(path: str | Path, allowed_roots: Roots) -> Path:
    """As :func:`ensure_output_dir`, but leaves no trace: directories made for the trial are removed again."""
    real = allowed_roots.resolve(path, for_writing=True)
    for made in reversed(_create(real)):
        made.rmdir()
    return real


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


def _create(directory: Path) -> list[Path]:
    """Make ``directory`` with its parents and try to write there; the directories made, outermost first."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    made: list[Path] = []
    try:
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            made.append(place)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        probe = directory / f".trainpack-{secrets.token_hex(8)}.tmp"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        for place in reversed(made):
            place.rmdir()
        raise failed_write(directory, error) from error
    return made

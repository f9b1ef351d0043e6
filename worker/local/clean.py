"""What may be removed of what trainpack keeps on this machine: what each part is for, where it lies, how large it is.

Nothing that a user made is among it: outputs stay. What is removed is made again when it is needed, but for what was
uploaded to the embedded object storage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError

SEAWEEDFS_DIRECTORY = "seaweedfs"
_SCRATCH_PREFIX = ".trainpack-"
_DEPTH = 3


class KeptPart(StrEnum):
    """A part that can be chosen."""

    SCRATCH = "scratch"
    """Working directories of jobs that failed or were cut off."""
    CACHE = "cache"
    """Fetched inputs and compiled kernels."""
    DEMO = "demo"
    """The demo's base model and training run."""
    STORAGE = "storage"
    """What was uploaded to the embedded object storage."""


@dataclass(frozen=True)
class LeftOver:
    """One directory that may go."""

    part: KeptPart
    path: Path
    size_bytes: int


def size_of(directory: Path) -> int:
    """Bytes that the files below a directory take on the disk; each file once, however many names it has."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                info = Path(place, name).lstat()
            except OSError:  # gone meanwhile
                continue
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total += info.st_blocks * 512
    return total


def find_left(home: Path, kernels: Path, places: Iterable[Path]) -> list[LeftOver]:
    """Everything that may go.

    Args:
        home: ``TRAINPACK_HOME``.
        kernels: Where compiled kernels are kept.
        places: Directories below which jobs wrote, to be searched for working directories that they left.
    """
    known = [
        *((KeptPart.SCRATCH, path) for path in _entries(home / "scratch")),
        *((KeptPart.SCRATCH, path) for place in places for path in _scratch_below(place, _DEPTH)),
        (KeptPart.CACHE, home / "cache"),
        (KeptPart.CACHE, kernels),
        (KeptPart.DEMO, home / "demo"),
        (KeptPart.STORAGE, home / SEAWEEDFS_DIRECTORY),
    ]
    return [LeftOver(part, path, size_of(path)) for part, path in known if path.is_dir()]


def remove(home: Path, chosen: Iterable[LeftOver]) -> list[LeftOver]:
    """Remove what was chosen.

    Returns:
        What went; a working directory that someone works in stays.

    Raises:
        PackagingError: ``service_start_failed`` while a stack runs in the home, whose files these are.
    """
    from worker.storage.locks import FileLock

    lock = FileLock(home / "stack.lock")
    if home.is_dir() and not lock.try_acquire():
        raise PackagingError(
            ErrorCode.SERVICE_START_FAILED,
            f"the stack in {home} runs, and what it uses is not removed under it",
            remedy="Stop it with Ctrl-C where `trainpack up` runs, then clean.",
            fields={"home": str(home)},
        )
    try:
        return [left for left in chosen if _remove(left)]
    finally:
        lock.release()


def _remove(left: LeftOver) -> bool:
    if left.part is not KeptPart.SCRATCH:
        shutil.rmtree(left.path, ignore_errors=True)
        return not left.path.exists()
    from worker.service.supervisor.scratch import remove_scratch
    from worker.service.supervisor.scratch_lock import acquire

    try:
        held = acquire(left.path)
    except OSError:
        return False
    if held is None:
        return False
    try:
        remove_scratch(left.path)
    finally:
        os.close(held)
    return not left.path.exists()


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError:
        return []


def _scratch_below(place: Path, depth: int) -> Iterator[Path]:
    """Working directories: of the right name, and with the lock file that every one of them has."""
    from worker.service.supervisor.scratch_lock import LOCK_FILE

    for entry in _entries(place):
        if entry.name.startswith(_SCRATCH_PREFIX) and (entry / LOCK_FILE).is_file():
            yield entry
        elif depth > 0:
            yield from _scratch_below(entry, depth - 1)

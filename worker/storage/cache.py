"""The cache of fetched inputs: one entry per content, bounded, the least recently used going first.

Layout, under the cache directory::

    ID.lock          taken (flock) by whoever fills or removes the entry
    ID/record.json   source, size, whether complete; its modification time is the entry's last use
    ID/holds/        one file per holder; its content is a path
    ID/files/...     the fetched files

An entry is in use while the path that any of its holds names exists: a job's scratch directory, so that later stages of
the job and its replays find their inputs; or ``/proc/PID`` of a process. Holds lapse by themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.roots import Roots
from worker.stop import ShouldStop
from worker.storage.atomic import atomic_write_text
from worker.storage.locks import FileLock
from worker.storage.paths import check_disk_space, ensure_output_dir


@dataclass(frozen=True)
class Content:
    """What an entry holds.

    Attributes:
        source: Where it comes from, for people.
        identity: What makes it this content and no other: keys, tags, sizes, a commit.
        size_bytes: Bytes of all files.
        files: Size of each file by relative name; what a complete entry must have.
    """

    source: str
    identity: str
    size_bytes: int
    files: dict[str, int]

    @property
    def id(self) -> str:
        """Name of the entry."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """A place in the cache."""

    directory: Path

    @property
    def files(self) -> Path:
        """Directory of the fetched files."""
        return self.directory / "files"

    @property
    def record(self) -> Path:
        """What is known of the entry."""
        return self.directory / "record.json"

    def in_use(self) -> bool:
        """Whether a holder lives; lapsed holds are removed."""
        for hold in (self.directory / "holds").glob("*"):
            if Path(hold.read_text("utf-8")).exists():
                return True
            hold.unlink()
        return False

    def hold(self, holder: Path) -> None:
        """Keep the entry while ``holder`` exists."""
        name = hashlib.sha256(str(holder).encode()).hexdigest()[:16]
        (self.directory / "holds").mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.directory / "holds" / name, str(holder), durable=False)

    def size_bytes(self) -> int:
        """Bytes that it takes or, while it is being filled, will take."""
        size = self._read().get("size_bytes")
        return size if isinstance(size, int) else 0

    def last_use(self) -> float:
        """When it was last asked for, seconds since 1970."""
        try:
            return self.record.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def complete(self, content: Content) -> bool:
        """Whether all files are there with their sizes."""
        return bool(self._read().get("complete")) and all(
            (path := self.files / name).is_file() and path.stat().st_size == size
            for name, size in content.files.items()
        )

    def note(self, content: Content, *, complete: bool) -> None:
        """Write the record."""
        self.directory.mkdir(parents=True, exist_ok=True)
        record = {"source": content.source, "size_bytes": content.size_bytes, "complete": complete}
        atomic_write_text(self.record, json.dumps(record) + "\n")

    def _read(self) -> dict[str, object]:
        try:
            record = json.loads(self.record.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}


class InputCache:
    """The cache under one directory.

    Args:
        directory: Created where missing. Belongs to one machine.
        bound_bytes: Size above which entries not in use are removed. What is in use is never removed, so that a single
            job may exceed the bound.
        reserve_bytes: What shall stay free on the disk.
    """

    def __init__(self, directory: Path, bound_bytes: int, *, reserve_bytes: int = 0) -> None:
        self._directory = ensure_output_dir(directory, Roots.anywhere())
        self._bound_bytes = bound_bytes
        self._reserve_bytes = reserve_bytes

    def get(
        self,
        content: Content,
        fill: Callable[[Path], None],
        *,
        holder: Path | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Path:
        """Directory with the files of ``content``, filled on the first call.

        Args:
            content: What is wanted.
            fill: Puts the files into the directory it is given; may find some of them, or parts, from an earlier try.
            holder: The entry stays while this path exists; this process where not given.
            should_stop: Asked while another process fills the same entry.

        Raises:
            PackagingError: what ``fill`` raises; ``disk_space_insufficient``.
            StopRequested: asked to stop.
        """
        entry = Entry(self._directory / content.id)
        lock = FileLock(self._lock_of(entry))
        lock.acquire(should_stop)
        try:
            entry.hold(holder or Path("/proc") / str(os.getpid()))
            if entry.complete(content):
                os.utime(entry.record)
                return entry.files
            self._make_room(entry, content.size_bytes)
            entry.note(content, complete=False)
            entry.files.mkdir(exist_ok=True)
            needed = content.size_bytes - _used_bytes(entry.files)
            check_disk_space({entry.files: needed}, reserve_bytes=self._reserve_bytes)
            fill(entry.files)
            entry.note(content, complete=True)
        finally:
            lock.release()
        return entry.files

    def _make_room(self, wanted: Entry, size_bytes: int) -> None:
        entries = [Entry(path) for path in self._directory.iterdir() if path.is_dir() and path != wanted.directory]
        total = size_bytes + sum(entry.size_bytes() for entry in entries)
        for entry in sorted(entries, key=Entry.last_use):
            if total <= self._bound_bytes:
                return
            total -= self._remove(entry)

    def _remove(self, entry: Entry) -> int:
        """Remove an entry unless it is in use or being filled; the bytes gained."""
        lock = FileLock(self._lock_of(entry))
        if not lock.try_acquire():
            return 0
        try:
            if entry.in_use():
                return 0
            size = entry.size_bytes()
            trash = entry.directory.with_name(f".{entry.directory.name}.{time.time_ns()}")
            entry.directory.rename(trash)
            shutil.rmtree(trash)
            return size
        finally:
            lock.release()

    def _lock_of(self, entry: Entry) -> Path:
        return entry.directory.with_name(f"{entry.directory.name}.lock")


def _used_bytes(directory: Path) -> int:
    """Bytes on the disk below a directory, partial files included."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())

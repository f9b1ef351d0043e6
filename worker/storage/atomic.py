"""Files that appear under their final name only when they are complete.

Write beside the final name, fsync, rename, fsync the directory. A crash leaves at most a hidden ``.NAME.XXXXXXXX.tmp``;
the next write of the same name removes it: a temporary that nobody holds a lock on, and that has lain still for a
minute, belongs to no living writer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from api_client.digest import CHUNK_BYTES
from api_client.disk import is_full, no_space, write_errors
from worker.stop import ShouldStop, StopRequested
from worker.storage.held import HeldDirectory, check_place, hold
from worker.storage.partial import PartialFile
from worker.storage.temporaries import fsync_directory, remove_stale_temporaries, temporary_name


class AtomicFile:
    """A file being written: ``with AtomicFile(path) as file: file.write(...)``. An exception leaves nothing behind.

    Args:
        path: The final name; an older file of that name stays until the new one is complete.
        mode: Permissions, less the umask.
        durable: Whether to wait until the bytes are on the disk.

    Raises:
        PackagingError: ``output_dir_not_writable``, ``disk_space_insufficient`` (also for a disk that fills while the
            body writes).
    """

    def __init__(self, path: Path, *, mode: int = 0o666, durable: bool = True) -> None:
        self.path = path
        self._partial = PartialFile(path, mode=mode, durable=durable)

    def __enter__(self) -> BinaryIO:
        self._partial.open()
        self._file: BinaryIO = os.fdopen(self._partial.descriptor, "w+b", closefd=False)
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with write_errors(self.path):
                    self._file.flush()
                self._partial.finish()
        finally:
            with contextlib.suppress(OSError):  # closing flushes; what that could say has been said
                self._file.close()
            self._partial.discard()
        if isinstance(error, OSError) and is_full(error):
            raise no_space(self.path, error) from error


def atomic_write_bytes(path: Path, data: bytes, *, mode: int = 0o666, durable: bool = True) -> None:
    """Write a whole file; arguments and errors as :class:`AtomicFile`."""
    with AtomicFile(path, mode=mode, durable=durable) as file:
        file.write(data)


def atomic_write_text(path: Path, text: str, *, mode: int = 0o666, durable: bool = True) -> None:
    """Write a whole UTF-8 text; arguments and errors as :class:`AtomicFile`."""
    atomic_write_bytes(path, text.encode("utf-8"), mode=mode, durable=durable)


def place_file(
    source: Path,
    final: Path,
    *,
    report: Callable[[int], None] | None = None,
    should_stop: ShouldStop | None = None,
) -> None:
    """Give a finished file its final name, replacing an older one; ``source`` stays.

    A hard link where both lie on one file system that has them: then the two names share their bytes, so ``source``
    must never be written in place again. A copy elsewhere.

    Args:
        source: A complete file.
        final: Its new name.
        report: Called with the bytes copied so far.
        should_stop: Asked before each chunk of a copy.

    Raises:
        PackagingError: as :class:`AtomicFile`; ``path_not_allowed`` also where ``source`` lies elsewhere.
        StopRequested: asked to stop; nothing is left behind.
    """
    with write_errors(final):
        held = hold(final.parent)
    with held, held.told():
        size_bytes = _place(source, held, final.name, report, should_stop)
    if report is not None and size_bytes is not None:
        report(size_bytes)


def _place(
    source: Path,
    held: HeldDirectory,
    name: str,
    report: Callable[[int], None] | None,
    should_stop: ShouldStop | None,
) -> int | None:
    """Link ``source`` into an open directory, and say its size; or copy it, and say nothing."""
    final = held.here / name
    remove_stale_temporaries(final)
    link = temporary_name(final)
    with source.open("rb") as file:
        check_place(file.fileno(), source)
        try:
            # By its descriptor, so that what is linked is what was opened, whatever the name means by now.
            os.link(f"/proc/self/fd/{file.fileno()}", link.name, dst_dir_fd=held.descriptor, follow_symlinks=True)
        except OSError:
            _copy(file, final, report, should_stop)
            return None
        try:
            with write_errors(final):
                os.fsync(file.fileno())
                link.replace(final)
                fsync_directory(held.here)
        finally:
            link.unlink(missing_ok=True)  # renaming onto another link of the same file does nothing, by POSIX
        return os.fstat(file.fileno()).st_size


def _copy(source: BinaryIO, final: Path, report: Callable[[int], None] | None, should_stop: ShouldStop | None) -> None:
    done = 0
    with AtomicFile(final) as target:
        while data := source.read(CHUNK_BYTES):
            if should_stop is not None and should_stop():
                raise StopRequested
            target.write(data)
            done += len(data)
            if report is not None:
                report(done)

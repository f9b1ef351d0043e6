"""Files that appear under their final name only when they are complete.

Write beside the final name, fsync, rename, fsync the directory. A crash leaves at most a hidden ``.NAME.XXXXXXXX.tmp``;
the next write of the same name removes it: a temporary that nobody holds a lock on, and that has lain still for a
minute, belongs to no living writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from api_client.disk import is_full, no_space, write_errors
from worker.stop import ShouldStop, StopRequested
from worker.storage.checksums import CHUNK_BYTES

STALE_AFTER_S = 60.0


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
        self._mode = mode
        self._durable = durable

    def __enter__(self) -> BinaryIO:
        remove_stale_temporaries(self.path)
        self._temporary = temporary_name(self.path)
        with write_errors(self.path):
            descriptor = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file: BinaryIO = os.fdopen(descriptor, "w+b")
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            with contextlib.suppress(OSError):  # closing flushes; what that could say has been said
                self._file.close()
            self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and is_full(error):
            raise no_space(self.path, error) from error

    def _finish(self) -> None:
        with write_errors(self.path):
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())
            self._temporary.replace(self.path)
            if self._durable:
                fsync_directory(self.path.parent)


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
        PackagingError: as :class:`AtomicFile`.
        StopRequested: asked to stop; nothing is left behind.
    """
    remove_stale_temporaries(final)
    link = temporary_name(final)
    try:
        os.link(source.resolve(strict=True), link)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not source.exists():
            raise
        _copy(source, final, report, should_stop)
        return
    try:
        with source.open("rb") as file, write_errors(final):
            os.fsync(file.fileno())
            link.replace(final)
            fsync_directory(final.parent)
    finally:
        link.unlink(missing_ok=True)  # renaming onto another link of the same file does nothing, by POSIX
    if report is not None:
        report(final.stat().st_size)


def fsync_directory(directory: Path) -> None:
    """Wait until a rename in ``directory`` is on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(final: Path) -> Path:
    """A fresh hidden name beside ``final``."""
    return final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")


def remove_stale_temporaries(final: Path) -> None:
    """Remove what crashed writers of ``final`` left. Age is by change of the inode, which making a link renews."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.????????.tmp"):
        with contextlib.suppress(OSError):  # gone meanwhile, held by its writer, or not ours to remove
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(descriptor).st_ctime > STALE_AFTER_S:
                    path.unlink()
            finally:
                os.close(descriptor)


def _copy(source: Path, final: Path, report: Callable[[int], None] | None, should_stop: ShouldStop | None) -> None:
    done = 0
    with AtomicFile(final) as target, source.open("rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            if should_stop is not None and should_stop():
                raise StopRequested
            target.write(data)
            done += len(data)
            if report is not None:
                report(done)

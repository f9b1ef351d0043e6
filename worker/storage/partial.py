"""A file that grows beside its final name and has that name only when it is whole.

Life: :meth:`PartialFile.open`, any number of :meth:`~PartialFile.write`, then one of :meth:`~PartialFile.finish`,
:meth:`~PartialFile.suspend`, :meth:`~PartialFile.discard`. One that may be taken up again lies at ``NAME.partial`` with
its journal ``NAME.journal``, and its lock tells a second attempt that the first is still alive: that one then works on
a private file ``.NAME.XXXXXXXX.tmp``, without journal, as every writer does that will not come back to it.

It works by an open directory: whatever becomes of names on the way there, nothing is written elsewhere.

What the system refuses while the file is written becomes the project's error here, for every writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from api_client.disk import write_errors
from worker.storage.held import HeldDirectory, hold
from worker.storage.journal import Entry, Journal
from worker.storage.locks import is_still, try_lock
from worker.storage.reserve import reserve
from worker.storage.temporaries import fsync_directory, remove_stale_temporaries, temporary_name

_WRITE_BYTES = 1 << 20  # for larger writes Linux looks for large free pieces of memory: three times as slow, measured
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class PartialFile:
    """A file being made. Every method but :meth:`discard` and :meth:`suspend` may raise what writing raises.

    Args:
        final: The name it will have; an older file of that name stays until this one is whole.
        fingerprint: Digest of everything that decides its bytes, where a later attempt may take it up.
        mode: Permissions, less the umask.
        durable: Whether :meth:`finish` waits until the bytes are on the disk.

    Raises:
        PackagingError: ``disk_space_insufficient``, ``output_dir_not_writable``; ``path_not_allowed`` where this
            process may not write there.
    """

    def __init__(self, final: Path, *, fingerprint: str | None = None, mode: int = 0o666, durable: bool = True) -> None:
        self.final = final
        self.path = final.with_name(f"{final.name}.partial")
        self.descriptor = -1
        self._fingerprint = fingerprint
        self._journal: Journal | None = None
        self._held: HeldDirectory | None = None
        self._mode = mode
        self._durable = durable
        self._size_bytes: int | None = None

    def open(self) -> list[Entry]:
        """Create the file, or take up an earlier attempt's.

        Returns:
            What an earlier attempt noted, to be checked against the bytes; empty where there is nothing to take up.
        """
        with write_errors(self.final):
            self._held = hold(self.final.parent)
            final = self._held.here / self.final.name
            if self._fingerprint:
                self.path = final.with_name(f"{final.name}.partial")
                if self._take_up():
                    self._journal = Journal(final.with_name(f"{final.name}.journal"), self._fingerprint)
                    return self._journal.load()
            remove_stale_temporaries(final)
            self.path = temporary_name(final)
            self.descriptor = os.open(self.path, _FLAGS | os.O_EXCL, self._mode)
            try_lock(self.descriptor)
            return []

    def claim(self, size_bytes: int, keep_bytes: int, entries: Iterable[Entry] = ()) -> None:
        """Give the file its size, its blocks reserved, and begin its journal anew.

        Args:
            size_bytes: Size of the whole file.
            keep_bytes: How much of its beginning is good; what follows reads as zeros.
            entries: What the journal shall say of it.
        """
        self._size_bytes = size_bytes
        with write_errors(self.final, size_bytes):
            os.ftruncate(self.descriptor, keep_bytes)
            reserve(self.descriptor, size_bytes)
            if self._journal is not None:
                self._journal.start(entries)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes to their place; from any thread."""
        with write_errors(self.final, self._size_bytes):
            while data:
                count = os.pwrite(self.descriptor, data[:_WRITE_BYTES], offset)
                data, offset = data[count:], offset + count

    def read(self, size_bytes: int, offset: int) -> bytes:
        """Read bytes back; fewer at the file's end."""
        with write_errors(self.final, self._size_bytes):
            return os.pread(self.descriptor, size_bytes, offset)

    def note(self, entry: Entry) -> None:
        """Note in the journal what is written."""
        if self._journal is not None:
            with write_errors(self.final, self._size_bytes):
                self._journal.add(entry)

    def sync(self) -> None:
        """Wait until the bytes are on the disk."""
        with write_errors(self.final, self._size_bytes):
            os.fsync(self.descriptor)

    def finish(self) -> None:
        """Give the file its final name; it is on the disk then, where ``durable``."""
        if self._durable:
            self.sync()
        with write_errors(self.final, self._size_bytes):
            self.path.replace(self.path.with_name(self.final.name))
            if self._durable:
                fsync_directory(self.path.parent)
            if self._journal is not None:
                self._journal.remove()
        self._close()

    def suspend(self) -> None:
        """Leave file and journal for a later attempt; a private file is discarded."""
        if self._journal is None:
            self.discard()
            return
        self._journal.close()
        self._close()

    def discard(self) -> None:
        """Remove everything; nothing happens where the file is finished or suspended."""
        self.release()
        self._close()

    def release(self) -> None:
        """Give the disk space back at once.

        The descriptor stays open: a thread may still write to it, and must not hit another file of the same number.
        """
        if self.descriptor >= 0 and is_still(self.path, self.descriptor):
            os.ftruncate(self.descriptor, 0)
            self.path.unlink(missing_ok=True)
            if self._journal is not None:
                self._journal.remove()

    def _take_up(self) -> bool:
        """Open and lock the file that attempts share; false where another attempt works on it."""
        while True:
            descriptor = os.open(self.path, _FLAGS, self._mode)
            if not try_lock(descriptor):
                os.close(descriptor)
                return False
            if is_still(self.path, descriptor):
                self.descriptor = descriptor
                return True
            os.close(descriptor)  # renamed or removed by its owner in between: begin again

    def _close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self._held is not None:
            self.path = self.final.with_name(self.path.name)
            self._held.close()
            self._held = None

"""A file being made.

It grows as ``<name>.partial``, with a journal beside it, and gets its name only when complete: all bytes written,
synced, renamed. The partial file has its final size from the start, so tensors can be written in any order and the
disk's space is claimed before the work. Its lock tells a second attempt that the first is still alive: that one then
works on a file of its own, without journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.disk import failed_write
from api_client.errors import PackagingError
from worker.gguf.tensors import align_up
from worker.mixture.plan import OutputPlan
from worker.quantize.digest import OrderedDigest
from worker.quantize.journal import Journal
from worker.quantize.slabs import Slab
from worker.reserve import reserve
from worker.storage.atomic import fsync_directory
from worker.storage.locks import is_still

_READ_BYTES = 4 << 20
_WRITE_BYTES = 1 << 20  # for larger writes Linux looks for large free pieces of memory, which takes it longer


class OutputFile:
    """One quant type's file.

    Life: :meth:`open`, any number of :meth:`write` (from any thread) and :meth:`tensor_done`, then one of
    :meth:`finish`, :meth:`discard`, :meth:`suspend`. A failure is kept in :attr:`error`; the file is of no use then.

    Attributes:
        final: The name it will have.
        plan: What is to be written.
        error: Why it failed, or None.
        finished: Tensors that need not be made any more.
        resumed: How many of them an earlier attempt made.
    """

    def __init__(self, final: Path, plan: OutputPlan, fingerprint: str, *, resumable: bool) -> None:
        self.final = final
        self.plan = plan
        self.error: PackagingError | None = None
        self.finished: set[int] = set()
        self.resumed = 0
        self._partial = final.with_name(f"{final.name}.partial")
        self._journal: Journal | None = Journal(final.with_name(f"{final.name}.journal"), fingerprint)
        self._resumable = resumable
        self._descriptor = -1
        self._digest: OrderedDigest | None = None
        self._failing = threading.Lock()

    def open(self, slabs: Sequence[Slab]) -> None:
        """Create the partial file, or take up an earlier attempt's. A failure shows in :attr:`error`."""
        try:
            self._open_partial()
            done = self._verified(slabs) if self._journal else {}
            if not done:
                os.ftruncate(self._descriptor, 0)
            reserve(self._descriptor, self.plan.size_bytes)
            self._write_frame(padding=bool(done))
            if self._journal:
                self._journal.start(done)
        except OSError as error:
            self.fail(error)
            self.release()
            return
        self.finished = set(done)
        self.resumed = len(done)
        self._digest = None if done else OrderedDigest(self.plan.header)

    def write(self, slab: Slab, data: NDArray[np.uint8]) -> int:
        """Write a slab's bytes, uint8 ``(row_count, row_bytes)``, and return their CRC-32; failures as :meth:`open`."""
        offset, _ = self._place(slab)
        flat = data.reshape(-1)
        try:
            _write_all(self._descriptor, flat.data, offset)
        except OSError as error:
            self.fail(error)
            return 0
        if self._digest is not None:
            self._digest.add(slab.index, flat, self._padding(slab.tensor_index) if slab.is_last else 0)
        return zlib.crc32(flat.data)

    def tensor_done(self, index: int, values: tuple[int, ...]) -> None:
        """Note that all slabs of a tensor are written; ``values`` are their CRC-32."""
        self.finished.add(index)
        if self._journal:
            try:
                self._journal.add(index, values)
            except OSError as error:
                self.fail(error)

    def wait_for_digest(self, count: int) -> None:
        """Let the digest catch up until fewer than ``count`` slabs wait for it."""
        if self._digest is not None:
            self._digest.wait_below(count)

    def finish(self, confirm: Callable[[], None]) -> str:
        """Sync, rename, and return the SHA-256; failures as :meth:`open`, with an empty digest then.

        Args:
            confirm: Called right before the rename; an exception it raises goes through.
        """
        try:
            digest = self._digest.hexdigest() if self._digest else self._read_digest()
            os.fsync(self._descriptor)
        except OSError as error:
            self.fail(error)
            return ""
        confirm()
        try:
            self._partial.replace(self.final)
        except OSError as error:
            self.fail(error)
            return ""
        with contextlib.suppress(OSError):  # the file is there already: a file system that cannot do this is no failure
            fsync_directory(self.final.parent)
        if self._journal:
            self._journal.remove()
        self._close()
        return digest

    def fail(self, error: OSError | PackagingError) -> None:
        """Keep the first error, as a person should see it."""
        with self._failing:
            if self.error is None:
                self.error = (
                    error
                    if isinstance(error, PackagingError)
                    else failed_write(self.final, error, self.plan.size_bytes)
                )

    def release(self) -> None:
        """Give a failed file's disk space back at once.

        The descriptor stays open: a thread may still write to it, and must not hit another file of the same number.
        """
        if self._descriptor >= 0 and self._partial.exists():
            os.ftruncate(self._descriptor, 0)
            self._partial.unlink(missing_ok=True)
            if self._journal:
                self._journal.remove()

    def discard(self) -> None:
        """Remove everything but a finished file."""
        self.release()
        self._close()

    def suspend(self) -> None:
        """Leave partial file and journal for a later attempt."""
        if self._journal is None:
            self.discard()
            return
        self._journal.close()
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open_partial(self) -> None:
        """Open and lock; a lock held by another attempt, or no wish to resume, leads to a private file."""
        while self._resumable:
            descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not _lock(descriptor):
                os.close(descriptor)
                break
            if is_still(self._partial, descriptor):
                self._descriptor = descriptor
                return
            os.close(descriptor)  # renamed or removed by its owner in between: begin again
        self._journal = None
        self._partial = self.final.with_name(f"{self.final.name}.{os.getpid()}.{id(self):x}.partial")
        self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def _verified(self, slabs: Sequence[Slab]) -> dict[int, tuple[int, ...]]:
        """Tensors of an earlier attempt whose bytes are what the journal says."""
        stated = self._journal.load() if self._journal else {}
        found: dict[int, list[int]] = {index: [] for index in stated}
        for slab in slabs:
            if slab.tensor_index in found:
                found[slab.tensor_index].append(self._read_crc(*self._place(slab)))
        return {index: values for index, values in stated.items() if list(values) == found[index] and values}

    def _read_crc(self, offset: int, size: int) -> int:
        value = 0
        for start in range(offset, offset + size, _READ_BYTES):
            value = zlib.crc32(os.pread(self._descriptor, min(_READ_BYTES, offset + size - start), start), value)
        return value

    def _read_digest(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, self.plan.size_bytes, _READ_BYTES):
            digest.update(os.pread(self._descriptor, _READ_BYTES, start))
        return digest.hexdigest()

    def _place(self, slab: Slab) -> tuple[int, int]:
        """Offset in the file, and size, of a slab's bytes."""
        tensor = self.plan.tensors[slab.tensor_index]
        offset = len(self.plan.header) + tensor.offset + slab.first_row * tensor.row_bytes
        return offset, slab.row_count * tensor.row_bytes

    def _padding(self, tensor_index: int) -> int:
        """Zero bytes after a tensor."""
        size = self.plan.tensors[tensor_index].size_bytes
        return align_up(size, self.plan.alignment) - size

    def _write_frame(self, *, padding: bool) -> None:
        """Write the header and, into a file that is not all zeros, the padding after each tensor."""
        _write_all(self._descriptor, memoryview(self.plan.header), 0)
        for index, tensor in enumerate(self.plan.tensors if padding else ()):
            end = len(self.plan.header) + tensor.offset + tensor.size_bytes
            _write_all(self._descriptor, memoryview(bytes(self._padding(index))), end)


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the file; true too on file systems without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data[:_WRITE_BYTES], offset)
        data, offset = data[count:], offset + count

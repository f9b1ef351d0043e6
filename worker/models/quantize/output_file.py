"""Files being made.

A file grows beside its name (``worker.storage.partial``) and has its final size from the start, so tensors can be
written in any order and the disk's space is claimed before the work.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import PackagingError
from worker.models.gguf.tensors import align_up
from worker.models.gguf.types import GGMLType
from worker.models.mixture.plan import OutputPlan
from worker.models.quantize.digest import OrderedDigest
from worker.models.quantize.journal import StatedTensor, stated_tensors, tensor_entry
from worker.models.quantize.lattice import Exactness
from worker.models.quantize.slabs import Slab
from worker.storage.partial import PartialFile

_READ_BYTES = 4 << 20


class FileInTheMaking(ABC):
    """A file of the pass. A failure is kept in :attr:`error`; the file is of no use then.

    Life: :meth:`open`, any number of :meth:`write` (from any thread) and :meth:`tensor_done`, then one of
    :meth:`finish`, :meth:`discard`, :meth:`suspend`.

    Attributes:
        final: The name it will have.
        error: Why it failed, or None.
        finished: Tensors, in the order of the pass, that need not be made any more.
    """

    def __init__(self, final: Path, fingerprint: str | None) -> None:
        self.final = final
        self.error: PackagingError | None = None
        self.finished: set[int] = set()
        self._file = PartialFile(final, fingerprint=fingerprint)
        self._digest: OrderedDigest | None = None
        self._failing = threading.Lock()

    @abstractmethod
    def open(self, slabs: Sequence[Slab]) -> None:
        """Create the partial file, or take up an earlier attempt's. A failure shows in :attr:`error`."""

    @abstractmethod
    def type_of(self, slab: Slab) -> GGMLType:
        """The type that its tensor has in this file."""

    @abstractmethod
    def write(self, slab: Slab, data: NDArray[np.uint8]) -> int:
        """Write a slab's bytes, uint8 ``(row_count, row_bytes)``; failures as :meth:`open`.

        Returns:
            What :meth:`tensor_done` is told of it.
        """

    @abstractmethod
    def tensor_done(self, index: int, values: tuple[int, ...], /) -> None:
        """Note that all slabs of a tensor are written; ``values`` are what :meth:`write` returned for them."""

    def finish(self) -> str:
        """Sync, rename, and return the SHA-256; failures as :meth:`open`, with an empty digest then."""
        try:
            digest = self._hexdigest()
            self._file.sync()
            self._file.finish()
        except PackagingError as error:
            self.fail(error)
            return ""
        return digest

    def wait_for_digest(self, count: int) -> None:
        """Let the digest catch up until fewer than ``count`` slabs wait for it."""
        if self._digest is not None:
            self._digest.wait_below(count)

    def fail(self, error: PackagingError) -> None:
        """Keep the first error."""
        with self._failing:
            if self.error is None:
                self.error = error

    def release(self) -> None:
        """Give a failed file's disk space back at once; a thread may still write to it."""
        self._file.release()

    def discard(self) -> None:
        """Remove everything but a finished file."""
        self._file.discard()

    def suspend(self) -> None:
        """Leave partial file and journal for a later attempt."""
        self._file.suspend()

    @abstractmethod
    def _hexdigest(self) -> str:
        """SHA-256 of the whole file."""


class OutputFile(FileInTheMaking):
    """One quant type's file.

    Attributes:
        plan: What is to be written.
        resumed: How many tensors an earlier attempt made.
        exactness: By tensor how much of it is exact, where that is counted.

    Args:
        final: The name it will have.
        plan: What is to be written.
        fingerprint: Digest of all that decides its bytes, where a later attempt may take it up.
        in_order: Whether slabs come in the order in which the file has them; its digest is made on the way then.
    """

    def __init__(self, final: Path, plan: OutputPlan, fingerprint: str | None, *, in_order: bool = True) -> None:
        super().__init__(final, fingerprint)
        self.plan = plan
        self.resumed = 0
        self.exactness: dict[int, Exactness] = {}
        self._in_order = in_order

    def type_of(self, slab: Slab) -> GGMLType:
        """The type that its tensor has in this file."""
        return self.plan.tensors[slab.tensor_index].type

    def open(self, slabs: Sequence[Slab]) -> None:
        """Create the partial file, or take up an earlier attempt's. A failure shows in :attr:`error`."""
        try:
            done = self._verified(stated_tensors(self._file.open()), slabs)
            entries = (tensor_entry(index, stated) for index, stated in done.items())
            self._file.claim(self.plan.size_bytes, self.plan.size_bytes if done else 0, entries)
            self._write_frame(padding=bool(done))
        except PackagingError as error:
            self.fail(error)
            self.release()
            return
        self.finished = set(done)
        self.resumed = len(done)
        self.exactness = {index: stated.exactness for index, stated in done.items() if stated.exactness is not None}
        if self._in_order and not done:
            self._digest = OrderedDigest(hashlib.sha256(self.plan.header))

    def write(self, slab: Slab, data: NDArray[np.uint8]) -> int:
        """Write a slab's bytes, uint8 ``(row_count, row_bytes)``, and return their CRC-32; failures as :meth:`open`."""
        offset, _ = self._place(slab)
        flat = data.reshape(-1)
        try:
            self._file.write(flat.data, offset)
        except PackagingError as error:
            self.fail(error)
            return 0
        if self._digest is not None:
            self._digest.add(slab.index, flat, self._padding(slab.tensor_index) if slab.is_last else 0)
        return zlib.crc32(flat.data)

    def tensor_done(self, index: int, values: tuple[int, ...]) -> None:
        """Note that all slabs of a tensor are written; ``values`` are their CRC-32."""
        self.finished.add(index)
        try:
            self._file.note(tensor_entry(index, StatedTensor(values, self.exactness.get(index))))
        except PackagingError as error:
            self.fail(error)

    def _hexdigest(self) -> str:
        return self._digest.hexdigest() if self._digest else self._read_digest()

    def count(self, index: int, exactness: Exactness) -> None:
        """Count a slab of a tensor that is not done yet."""
        self.exactness[index] = self.exactness.get(index, Exactness()) + exactness

    def _verified(self, stated: dict[int, StatedTensor], slabs: Sequence[Slab]) -> dict[int, StatedTensor]:
        """Tensors of an earlier attempt whose bytes are what the journal says."""
        read_back: dict[int, list[int]] = {index: [] for index in stated}
        for slab in slabs:
            if slab.tensor_index in read_back:
                read_back[slab.tensor_index].append(self._read_crc(*self._place(slab)))
        return {
            index: tensor for index, tensor in stated.items() if list(tensor.crc32) == read_back[index] and tensor.crc32
        }

    def _read_crc(self, offset: int, size: int) -> int:
        value = 0
        for start in range(offset, offset + size, _READ_BYTES):
            value = zlib.crc32(self._file.read(min(_READ_BYTES, offset + size - start), start), value)
        return value

    def _read_digest(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, self.plan.size_bytes, _READ_BYTES):
            digest.update(self._file.read(_READ_BYTES, start))
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
        self._file.write(memoryview(self.plan.header), 0)
        for index, tensor in enumerate(self.plan.tensors if padding else ()):
            end = len(self.plan.header) + tensor.offset + tensor.size_bytes
            self._file.write(memoryview(bytes(self._padding(index))), end)

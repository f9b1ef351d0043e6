"""The unquantized file itself, written by the pass that quantizes: every tensor's bytes as they are read.

It is hashed as it is written, so the pass reads tensors in its order. Its partial file and journal are those of
``worker.models.convert.writer``: either goes on where the other was stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import PackagingError
from worker.models.convert.prefix import known_digests, prefix_entry, verified_prefix
from worker.models.gguf.tensors import TensorInfo
from worker.models.gguf.types import GGMLType
from worker.models.quantize.digest import OrderedDigest
from worker.models.quantize.output_file import FileInTheMaking
from worker.models.quantize.slabs import Slab
from worker.storage.paths import check_disk_space


@dataclass(frozen=True)
class CopyPlan:
    """The file to write.

    Attributes:
        header: Every byte before the first tensor.
        tensors: In file order.
        size_bytes: Size of the file.
        identity: Digest over everything that decides its bytes.
    """

    header: bytes
    tensors: Sequence[TensorInfo]
    size_bytes: int
    identity: str


class CopyFile(FileInTheMaking):
    """The file; slabs come in its order.

    Attributes:
        plan: What is to be written.
        sha256: Of the finished file.
        resumed_bytes: How much of it an earlier attempt had written.
    """

    def __init__(self, final: Path, plan: CopyPlan) -> None:
        super().__init__(final, plan.identity)
        self.plan = plan
        self.sha256 = ""
        self.resumed_bytes = 0
        self._start_of = {tensor.name: len(plan.header) + tensor.offset for tensor in plan.tensors}
        starts = [*self._start_of.values(), plan.size_bytes]
        self._end_of = dict(zip(self._start_of, starts[1:], strict=True))
        self._number_of: dict[int, int] = {}
        self._ends: dict[int, int] = {}

    def open(self, slabs: Sequence[Slab]) -> None:
        """Create the partial file, or take up an earlier attempt's good beginning."""
        try:
            known = known_digests(self._file.open())
            digest, kept = verified_prefix(self._file, [*self._start_of.values(), self.plan.size_bytes], known)
            check_disk_space({self.final: self.plan.size_bytes - kept})
            good = [prefix_entry(end, sha256) for end, sha256 in known.items() if end <= kept]
            self._file.claim(self.plan.size_bytes, kept, good)
            if kept == 0:
                self._file.write(memoryview(self.plan.header), 0)
                digest = hashlib.sha256(self.plan.header)
                self._file.note(prefix_entry(len(self.plan.header), digest.hexdigest()))
        except PackagingError as error:
            self.fail(error)
            self.release()
            return
        self.resumed_bytes = kept
        left = [slab for slab in slabs if self._end_of[slab.tensor.name] > kept]
        self.finished = {slab.tensor_index for slab in slabs} - {slab.tensor_index for slab in left}
        self._number_of = {slab.index: number for number, slab in enumerate(left)}
        self._ends = {number: self._end_of[slab.tensor.name] for number, slab in enumerate(left) if slab.is_last}
        self._digest = OrderedDigest(digest, self._note)

    def type_of(self, slab: Slab) -> GGMLType:
        """The source's."""
        return slab.tensor.type

    def write(self, slab: Slab, data: NDArray[np.uint8]) -> int:
        """Write a slab's bytes; nothing has to be told of it."""
        flat, name = data.reshape(-1), slab.tensor.name
        try:
            self._file.write(flat.data, self._start_of[name] + slab.first_row * slab.tensor.row_bytes)
        except PackagingError as error:
            self.fail(error)
            return 0
        assert self._digest is not None, "the file is open"
        padding = self._end_of[name] - self._start_of[name] - slab.tensor.size_bytes
        self._digest.add(self._number_of[slab.index], flat, padding if slab.is_last else 0)
        return 0

    def tensor_done(self, index: int, _values: tuple[int, ...]) -> None:
        """Count it; the journal has it as soon as it is hashed."""
        self.finished.add(index)

    def finish(self) -> str:
        """Sync, rename, and return the SHA-256."""
        self.sha256 = super().finish()
        return self.sha256

    def _note(self, number: int) -> None:
        end = self._ends.get(number)
        if end is None or self._digest is None:
            return
        try:
            self._file.note(prefix_entry(end, self._digest.hexdigest()))
        except PackagingError as error:
            self.fail(error)

    def _hexdigest(self) -> str:
        assert self._digest is not None, "the file is open"
        return self._digest.hexdigest()

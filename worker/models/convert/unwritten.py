"""The file that a conversion would make, read like one that lies on the disk: a tensor is made when it is read.

Whoever quantizes it reads the base model itself, and no unquantized file is written or read. Tensors are made on
threads of their own, ahead of whoever reads them in the order that was announced, and let go after their last row.
Memory: the tensor that is read and the next one, more of them up to 32 MiB for each thread; of tensors that nobody has
changed it is pages of the base model's files.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.convert.evaluate import shared_cores
from worker.models.convert.pipeline import Conversion
from worker.models.gguf.metadata import Metadata
from worker.models.gguf.reader import GGUFFile
from worker.models.gguf.tensors import TensorInfo

_AHEAD_BYTES = 32 * 1024 * 1024  # for each thread


class UnwrittenFile:
    """An open one; a source of quantization, and what else reads a GGUF file tensor by tensor.

    Attributes:
        name: What the file would be called, for messages.
        header: Its header, parsed.
        metadata: Values by key, in file order.
        tensors: All tensors.
        paths: The files that it is made of.
        identity: The same as long as nobody writes to these.
    """

    def __init__(self, name: str, conversion: Conversion, pool: ThreadPoolExecutor, ahead_bytes: int) -> None:
        plan = conversion.plan
        self.name = name
        self.header = GGUFFile(name, memoryview(plan.header), plan.size_bytes)
        self.metadata: Metadata = self.header.metadata
        self.tensors: tuple[TensorInfo, ...] = tuple(self.header.tensors)
        self.paths: Sequence[Path] = sorted({entry.file for entry in conversion.base.tensors.values()})
        self.identity = conversion.identity
        self.size_bytes = plan.size_bytes
        self._base = conversion.base
        self._evaluator = plan.evaluator
        self._values = {tensor.name: tensor.value for tensor in plan.tensors}
        self._ahead_bytes = ahead_bytes
        self._pool = pool
        self._lock = threading.Lock()
        self._coming: deque[TensorInfo] = deque()
        self._made: dict[str, Future[NDArray[np.uint8]]] = {}
        self._rows_left: dict[str, int] = {}
        self._made_bytes = 0

    @property
    def header_sha256(self) -> str:
        """Digest of everything before the data section."""
        return self.header.header_sha256

    def file_of(self, _tensor: TensorInfo) -> str:
        """What the file would be called."""
        return self.name

    def will_read(self, tensors: Sequence[TensorInfo]) -> None:
        """Say which tensors are read next, in order, every row of each once: they are made ahead."""
        with self._lock:
            self._coming = deque(tensors)
            self._begin_more()

    def read_rows(self, tensor: TensorInfo, first_row: int, row_count: int) -> NDArray[np.uint8]:
        """Rows as they would lie in the file, uint8 ``(row_count, row_bytes)``, read-only; from many threads.

        Raises:
            PackagingError: ``base_model_invalid`` where a file of the base model has changed, ``out_of_memory``.
        """
        with self._lock:
            made = self._made.get(tensor.name)
            if made is None:  # not announced, or sooner than those before it
                self._coming = deque(other for other in self._coming if other.name != tensor.name)
                made = self._begin(tensor)
        data = made.result()
        with self._lock:
            self._rows_left[tensor.name] -= row_count
            if self._rows_left[tensor.name] <= 0 and self._made.pop(tensor.name, None) is not None:
                self._made_bytes -= tensor.size_bytes
            self._begin_more()
        return data[first_row : first_row + row_count]

    def tensor_bytes(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """A tensor's data, uint8 ``(row_count, row_bytes)``, read-only; made on this thread and not kept."""
        return self._make(tensor)

    def check_unchanged(self) -> None:
        """Refuse what was made of a base model that somebody wrote to meanwhile.

        Raises:
            PackagingError: ``base_model_invalid`` naming the file.
        """
        self._base.check_unchanged()

    def close(self) -> None:
        """Make nothing more."""
        with self._lock:
            self._coming.clear()
            for made in self._made.values():
                made.cancel()
            self._made.clear()

    def _begin_more(self) -> None:
        while self._coming:
            tensor = self._coming[0]
            if len(self._made) > 1 and self._made_bytes + tensor.size_bytes > self._ahead_bytes:
                return
            self._begin(self._coming.popleft())

    def _begin(self, tensor: TensorInfo) -> Future[NDArray[np.uint8]]:
        made = self._made[tensor.name] = self._pool.submit(self._make, tensor)
        self._rows_left[tensor.name] = tensor.row_count
        self._made_bytes += tensor.size_bytes
        return made

    def _make(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        try:
            data = self._evaluator.bytes_of(self._values[tensor.name])
        except MemoryError as error:
            raise PackagingError(
                ErrorCode.OUT_OF_MEMORY, f"memory ran out while tensor {tensor.name} of {self.name} was made"
            ) from error
        if data.nbytes != tensor.size_bytes:
            raise AssertionError(f"{tensor.name}: {data.nbytes} bytes made, {tensor.size_bytes} planned")
        rows = data.reshape(tensor.row_count, tensor.row_bytes)
        rows.flags.writeable = False
        return rows


@contextmanager
def open_unwritten(name: str, conversion: Conversion, threads: int | None = None) -> Iterator[UnwrittenFile]:
    """Open the file that a conversion would make.

    Args:
        name: What it would be called.
        conversion: The plan of it.
        threads: Threads that read it; by default one per core. Half as many make tensors.
    """
    threads = threads or os.cpu_count() or 1
    with ExitStack() as stack:
        stack.enter_context(shared_cores(threads))
        pool = stack.enter_context(ThreadPoolExecutor(max(1, threads // 2), thread_name_prefix="convert"))
        file = UnwrittenFile(name, conversion, pool, threads * _AHEAD_BYTES)
        stack.callback(file.close)
        yield file

"""Writes a planned file of tensors: evaluated on several threads, placed at known offsets, hashed in order.

Worker threads evaluate tensors; the calling thread takes the finished ones in file order and hashes them and the
padding between them, while one other thread writes them to their place. (Several threads writing one file would only
wait for its lock.) How far evaluation may run ahead of hashing is bounded in bytes, so memory stays at a few times the
largest tensor. The file is whole under its final name or not there (``worker.storage.partial``), and a later attempt
keeps its good beginning (``prefix``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.convert.prefix import known_digests, prefix_entry, verified_prefix
from worker.setting import WorkProgress, WorkSetting
from worker.stop import StopRequested
from worker.storage.partial import PartialFile
from worker.storage.paths import check_disk_space

_AHEAD_BYTES = 256 * 1024 * 1024


class Placed(Protocol):
    """One tensor of a file."""

    @property
    def name(self) -> str:
        """Name, for reports."""

    @property
    def offset(self) -> int:
        """Where its data begins, in bytes from the start of the file."""

    @property
    def size_bytes(self) -> int:
        """Bytes of data, without padding."""

    @property
    def value(self) -> Any:
        """What the plan's evaluator makes the data of."""


class BytesOf(Protocol):
    """Makes a tensor's data."""

    def bytes_of(self, node: Any) -> NDArray[np.uint8]:
        """Flat bytes; called on several threads."""


class FilePlan(Protocol):
    """A file whose every byte has its place: a header, then tensors in order, zeros between them."""

    @property
    def header(self) -> bytes:
        """Everything before the first tensor."""

    @property
    def tensors(self) -> Sequence[Placed]:
        """In file order."""

    @property
    def size_bytes(self) -> int:
        """Size of the file."""

    @property
    def evaluator(self) -> BytesOf:
        """Makes the data."""


@dataclass(frozen=True)
class WrittenFile:
    """A finished file.

    Attributes:
        path: Final path.
        size_bytes: Size.
        sha256: Hex digest of the whole file.
        resumed_bytes: How much of it an earlier attempt had written.
    """

    path: Path
    size_bytes: int
    sha256: str
    resumed_bytes: int


def write_plan(
    plan: FilePlan,
    path: Path,
    *,
    fingerprint: str,
    setting: WorkSetting,
) -> WrittenFile:
    """Write the file, resuming from an earlier attempt's partial file where its inputs were the same.

    Args:
        plan: What to write.
        path: Final path; replaced if it exists.
        fingerprint: Digest over everything that decides the file's bytes.
        setting: Tensors are evaluated on its threads, by default one. It is told bytes and the tensor's name after
            every tensor, in file order, and asked between tensors.

    Raises:
        StopRequested: Partial file and journal stay.
        PackagingError: ``disk_space_insufficient``, ``output_dir_not_writable``, or what evaluation raises; the partial
            file is removed.
    """
    file = PartialFile(path, fingerprint=fingerprint)
    try:
        known = known_digests(file.open())
        digest, kept = verified_prefix(file, [*(tensor.offset for tensor in plan.tensors), plan.size_bytes], known)
        check_disk_space({path: plan.size_bytes - kept})
        good = [prefix_entry(end, sha256) for end, sha256 in known.items() if end <= kept]
        file.claim(plan.size_bytes, kept, good)  # what follows the good beginning is not trusted
        _Pass(file, plan, digest).run(kept, setting)
        file.finish()
    except StopRequested:
        file.suspend()
        raise
    except MemoryError as error:
        raise PackagingError(ErrorCode.OUT_OF_MEMORY, f"memory ran out while {path.name} was written") from error
    finally:
        file.discard()
    return WrittenFile(path, plan.size_bytes, digest.hexdigest(), kept)


class _Pass:
    """One pass over the tensors that are still to be written."""

    def __init__(self, file: PartialFile, plan: FilePlan, digest: Any) -> None:
        self._file = file
        self._plan = plan
        self._digest = digest

    def run(self, kept: int, setting: WorkSetting) -> None:
        """Evaluate and write on threads, hash and report here, in file order.

        Raises:
            StopRequested: Everything that was begun is finished and in the journal.
        """
        if kept == 0:
            self._file.write(memoryview(self._plan.header), 0)
            self._digest.update(self._plan.header)
            self._file.note(prefix_entry(len(self._plan.header), self._digest.hexdigest()))
        tensors = self._plan.tensors
        ends = [*(tensor.offset for tensor in tensors[1:]), self._plan.size_bytes]
        left = deque((tensor, end) for tensor, end in zip(tensors, ends, strict=True) if end > kept)
        limit = max(_AHEAD_BYTES, *(2 * tensor.size_bytes for tensor in tensors))
        running: deque[tuple[Placed, int, Future[NDArray[np.uint8]]]] = deque()
        ahead_bytes, stopping = 0, False
        with (
            ThreadPoolExecutor(1, thread_name_prefix="convert-write") as writer,
            ThreadPoolExecutor(setting.threads or 1, thread_name_prefix="convert") as pool,
        ):
            try:
                while running or (left and not stopping):
                    while left and not stopping and (not running or ahead_bytes + left[0][0].size_bytes <= limit):
                        tensor, end = left.popleft()
                        running.append((tensor, end, pool.submit(self._make, tensor)))
                        ahead_bytes += tensor.size_bytes
                    tensor, end, future = running.popleft()
                    self._finish(tensor, end, future.result(), writer)
                    del future  # and with it the data
                    ahead_bytes -= tensor.size_bytes
                    setting.report(WorkProgress(end, self._plan.size_bytes, tensor.name))
                    if not stopping and setting.should_stop():
                        stopping = True
                        left.extend(_cancel_waiting(running))
            except BaseException:
                for _, _, future in running:
                    future.cancel()
                raise
        if left:
            raise StopRequested

    def _make(self, tensor: Placed) -> NDArray[np.uint8]:
        data = self._plan.evaluator.bytes_of(tensor.value)
        if data.nbytes != tensor.size_bytes:
            raise AssertionError(f"{tensor.name}: {data.nbytes} bytes made, {tensor.size_bytes} planned")
        return data

    def _finish(self, tensor: Placed, end: int, data: NDArray[np.uint8], writer: ThreadPoolExecutor) -> None:
        """Write and hash a tensor at the same time; note both in the journal."""
        writing = writer.submit(self._file.write, data.data, tensor.offset)
        self._digest.update(data)
        self._digest.update(bytes(end - tensor.offset - tensor.size_bytes))
        writing.result()
        self._file.note(prefix_entry(end, self._digest.hexdigest()))


def _cancel_waiting(running: deque[tuple[Placed, int, Future[NDArray[np.uint8]]]]) -> list[tuple[Placed, int]]:
    """Take back the tensors that no thread has begun; threads take them in order, so they are the last ones."""
    taken = []
    while running and running[-1][2].cancel():
        tensor, end, _ = running.pop()
        taken.append((tensor, end))
    return taken

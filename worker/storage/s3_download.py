"""Downloading objects: ranged requests in parallel into a partial file, resumed after a crash, verified, then renamed.

The file grows as a :class:`~worker.storage.partial.PartialFile`, of full size from the start. Its journal has the
number and the SHA-256 of each piece written; its fingerprint comes from the object's tag and size, so that pieces of
two versions never mix. Every request names the tag too, so that an object replaced meanwhile is noticed. A resumed
download checks each piece of the journal against the file before it trusts it.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import write_errors
from api_client.s3 import Request, S3Location, StorageSettings, attempt
from worker.storage.checksums import sha256_file, sha256_range
from worker.storage.journal import Entry
from worker.storage.objects import ObjectInfo, expectations
from worker.storage.parallel import run_parallel
from worker.storage.partial import PartialFile
from worker.storage.s3_limits import Limits

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK_BYTES = 2**20


class Piece(NamedTuple):
    """A range of an object. Numbers begin with 0."""

    number: int
    offset: int
    size_bytes: int


class Download:
    """One object on its way into one file.

    Args:
        client: The S3 client.
        settings: Piece size, names for messages.
        bucket: Bucket of the object.
        info: The object as listed.
        target: The file to make; an older one is replaced.
        missing: Code where the object is gone.
        sha256: What the file must have, in hexadecimal; what the storage says of the object where not given.
    """

    def __init__(
        self,
        client: S3Client,
        settings: StorageSettings,
        bucket: str,
        info: ObjectInfo,
        target: Path,
        *,
        missing: ErrorCode,
        sha256: str | None = None,
    ) -> None:
        identity = hashlib.sha256(repr((bucket, info, settings.part_size_bytes)).encode()).hexdigest()[:12]
        step, size = settings.part_size_bytes, info.size_bytes
        self.info = info
        self.target = target
        self.pieces = [Piece(n, at, min(step, size - at)) for n, at in enumerate(range(0, max(size, 1), step))]
        self._client = client
        self._settings = settings
        self._source = S3Location(bucket, info.key)
        self._missing = missing
        self._sha256 = sha256
        self._file = PartialFile(target, fingerprint=identity)
        self._noted: dict[int, str] | None = None
        """SHA-256 of the pieces that an earlier attempt wrote, once the file is open."""
        self._lock = threading.Lock()
        self._left = len(self.pieces)

    def fetch(self, piece: Piece, limits: Limits) -> int:
        """Get one piece, unless it is there; whoever gets the last one verifies and renames the file.

        Returns:
            Its size in bytes.

        Raises:
            PackagingError: ``download_failed``, ``storage_unreachable``, ``storage_denied``, the code for a missing
                object, ``disk_space_insufficient``, ``output_dir_not_writable``.
            StopRequested: asked to stop; the pieces stay for the next attempt.
        """
        if not self._has(piece):
            request = Request(f"downloading {self._source}", ErrorCode.DOWNLOAD_FAILED, self._missing)
            digest = attempt(lambda: self._transfer(piece, limits), request, self._settings, limits)
            with self._lock:
                self._file.note({"piece": piece.number, "sha256": digest})
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._finish(limits)
        return piece.size_bytes

    def suspend(self) -> None:
        """Leave what has arrived for the next attempt; nothing happens where the file is finished or never begun."""
        self._file.suspend()

    def _opened(self) -> dict[int, str]:
        """Digests of the pieces that are said to be in the file, which is open then."""
        with self._lock:
            if self._noted is None:
                with write_errors(self.target):
                    self.target.parent.mkdir(parents=True, exist_ok=True)
                entries = [entry for entry in self._file.open() if _is_piece(entry)]
                self._file.claim(self.info.size_bytes, self.info.size_bytes if entries else 0, entries)
                self._noted = {entry["piece"]: entry["sha256"] for entry in entries}
            return self._noted

    def _has(self, piece: Piece) -> bool:
        """Whether the file holds a piece as it was noted."""
        noted = self._opened().get(piece.number)
        return noted is not None and sha256_range(self._file.path, piece.offset, piece.size_bytes).hex() == noted

    def _transfer(self, piece: Piece, limits: Limits) -> str:
        """Bring one piece into the partial file; its SHA-256 in hexadecimal."""
        digest = hashlib.sha256()
        if not piece.size_bytes:
            return digest.hexdigest()
        answer = self._client.get_object(
            Bucket=self._source.bucket,
            Key=self._source.key,
            Range=f"bytes={piece.offset}-{piece.offset + piece.size_bytes - 1}",
            IfMatch=self.info.etag,
        )
        with contextlib.closing(answer["Body"]) as body:
            if answer["ContentLength"] != piece.size_bytes:
                raise PackagingError(
                    ErrorCode.DOWNLOAD_FAILED,
                    f"{self._source}: asked for {piece.size_bytes} bytes, {answer['ContentLength']} are sent",
                )
            offset = piece.offset
            while data := body.read(_CHUNK_BYTES):
                limits.check()
                digest.update(data)
                self._file.write(memoryview(data), offset)
                offset += len(data)
        return digest.hexdigest()

    def _finish(self, limits: Limits) -> None:
        wrong = self._mismatch(limits)
        if wrong is not None:
            self._file.discard()
            raise PackagingError(
                ErrorCode.DOWNLOAD_FAILED,
                f"{self._source} arrived changed: its {wrong} differs from what the storage or the caller says",
                fields={"url": str(self._source), "algorithm": wrong},
            )
        self._file.finish()

    def _mismatch(self, limits: Limits) -> str | None:
        """Name of the checksum that the partial file does not have; the first one that can be told decides."""
        if self._sha256 is not None:
            digest = sha256_file(self._file.path, should_stop=limits.should_stop)
            return None if digest == self._sha256 else "sha256"
        request = Request(f"checking {self._source}", ErrorCode.DOWNLOAD_FAILED, self._missing)
        address: dict[str, Any] = {"Bucket": self._source.bucket, "Key": self._source.key}
        head = attempt(
            lambda: self._client.head_object(**address, ChecksumMode="ENABLED"), request, self._settings, limits
        )
        for expected in expectations(head):
            part_size = None
            if expected.parts:
                first = attempt(
                    lambda: self._client.head_object(**address, PartNumber=1), request, self._settings, limits
                )
                part_size = first["ContentLength"]
            holds = expected.holds_for(self._file.path, part_size, limits.should_stop)
            if holds is not None:
                return None if holds else expected.algorithm
        return None


def _is_piece(entry: Entry) -> bool:
    return isinstance(entry.get("piece"), int) and isinstance(entry.get("sha256"), str)


def download_all(
    downloads: Sequence[Download], threads: int, limits: Limits, report: Callable[[int, int, str], None]
) -> None:
    """Fetch several objects, pieces of all of them in parallel, in the order given.

    Args:
        downloads: What to fetch.
        threads: Requests at once.
        limits: Retries and stop.
        report: Called with bytes done, bytes in all, and the name of the file at hand.

    Raises:
        PackagingError: as :meth:`Download.fetch`.
        StopRequested: asked to stop; what has arrived stays for the next attempt.
    """
    total = sum(download.info.size_bytes for download in downloads)
    done = 0
    abandoned = threading.Event()
    limits = limits.abandonable(abandoned)

    def work(item: tuple[Download, Piece]) -> tuple[int, str]:
        download, piece = item
        return download.fetch(piece, limits), download.target.name

    def arrived(result: tuple[int, str]) -> None:
        nonlocal done
        done += result[0]
        report(done, total, result[1])

    try:
        run_parallel(
            work,
            ((download, piece) for download in downloads for piece in download.pieces),
            threads=threads,
            abandoned=abandoned,
            on_done=arrived,
            should_stop=limits.should_stop,
        )
    finally:
        for download in downloads:
            download.suspend()

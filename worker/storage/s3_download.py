"""Downloading objects: ranged requests in parallel into a partial file, resumed after a crash, verified, then renamed.

Beside the target lie ``.NAME.ID.part``, of full size from the start, and ``.NAME.ID.pieces``, a journal with a line
``NUMBER SHA256`` for each piece written. ``ID`` comes from the object's tag and size, so that pieces of two versions
never mix; every request names the tag too, so that an object replaced meanwhile is noticed. A resumed download checks
each piece of the journal against the partial file before it trusts it. One process at a time may fetch into a target.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import write_error
from api_client.s3 import Request, S3Location, StorageSettings, attempt
from worker.storage.checksums import sha256_file, sha256_range
from worker.storage.objects import ObjectInfo, expectations
from worker.storage.parallel import run_parallel
from worker.storage.s3_limits import Limits
from worker.storage.temporaries import fsync_directory

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
        self._partial = target.with_name(f".{target.name}.{identity}.part")
        self._journal = target.with_name(f".{target.name}.{identity}.pieces")
        self._lock = threading.Lock()
        self._left = len(self.pieces)

    @functools.cached_property
    def _noted(self) -> dict[int, str]:
        """SHA-256 of the pieces that an earlier attempt wrote."""
        with contextlib.suppress(FileNotFoundError):
            lines = [line.split() for line in self._journal.read_text("ascii", "replace").splitlines()]
            return {int(line[0]): line[1] for line in lines if len(line) == 2 and line[0].isdigit()}
        return {}

    def fetch(self, piece: Piece, limits: Limits) -> int:
        """Get one piece, unless it is there; whoever gets the last one verifies and renames the file.

        Returns:
            Its size in bytes.

        Raises:
            PackagingError: ``download_failed``, ``storage_unreachable``, ``storage_denied``, the code for a missing
                object, ``disk_space_insufficient``, ``output_dir_not_writable``.
            StopRequested: asked to stop; the pieces stay for the next attempt.
        """
        self._prepare()
        if not self._has(piece):
            request = Request(f"downloading {self._source}", ErrorCode.DOWNLOAD_FAILED, self._missing)
            digest = attempt(lambda: self._transfer(piece, limits), request, self._settings, limits)
            with self._lock, self._mapped(), self._journal.open("a", encoding="ascii") as journal:
                journal.write(f"{piece.number} {digest}\n")
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._finish(limits)
        return piece.size_bytes

    def _prepare(self) -> None:
        with self._lock, self._mapped():
            if not self._partial.exists():
                self._journal.unlink(missing_ok=True)
                self.target.parent.mkdir(parents=True, exist_ok=True)
                with self._partial.open("xb") as file:
                    file.truncate(self.info.size_bytes)

    def _has(self, piece: Piece) -> bool:
        with self._lock:
            noted = self._noted.get(piece.number)
        return noted is not None and sha256_range(self._partial, piece.offset, piece.size_bytes).hex() == noted

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
        with contextlib.closing(answer["Body"]) as body, self._mapped(), self._partial.open("r+b", buffering=0) as file:
            if answer["ContentLength"] != piece.size_bytes:
                raise PackagingError(
                    ErrorCode.DOWNLOAD_FAILED,
                    f"{self._source}: asked for {piece.size_bytes} bytes, {answer['ContentLength']} are sent",
                )
            offset = piece.offset
            while data := body.read(_CHUNK_BYTES):
                limits.check()
                digest.update(data)
                offset += os.pwrite(file.fileno(), data, offset)
        return digest.hexdigest()

    def _finish(self, limits: Limits) -> None:
        wrong = self._mismatch(limits)
        if wrong is not None:
            self._partial.unlink()
            self._journal.unlink()
            raise PackagingError(
                ErrorCode.DOWNLOAD_FAILED,
                f"{self._source} arrived changed: its {wrong} differs from what the storage or the caller says",
                fields={"url": str(self._source), "algorithm": wrong},
            )
        with self._mapped():
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self.target)
            fsync_directory(self.target.parent)
            self._journal.unlink()

    def _mismatch(self, limits: Limits) -> str | None:
        """Name of the checksum that the partial file does not have; the first one that can be told decides."""
        if self._sha256 is not None:
            found = sha256_file(self._partial, should_stop=limits.should_stop)
            return None if found == self._sha256 else "sha256"
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
            holds = expected.holds_for(self._partial, part_size, limits.should_stop)
            if holds is not None:
                return None if holds else expected.algorithm
        return None

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.target, error) or error from error


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

    run_parallel(
        work,
        ((download, piece) for download in downloads for piece in download.pieces),
        threads=threads,
        abandoned=abandoned,
        on_done=arrived,
        should_stop=limits.should_stop,
    )

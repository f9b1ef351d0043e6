"""Uploading one file: in parts, each with its SHA-256; nothing counts as uploaded before the storage agrees on it.

The storage checks every part against the SHA-256 sent along. After the last part, size and checksum of the whole are
asked for and compared; where it keeps no checksum the object is read back. An upload that fails is aborted, unless it
will be tried again; the next upload of the same key goes on from the parts of this file that it finds (a crash leaves
some too), and aborts what holds others.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.s3 import Request, S3Location, S3Retry, StorageSettings, attempt
from worker.storage.checksums import sha256_range
from worker.storage.objects import SHA256_METADATA, expectations
from worker.storage.parallel import run_parallel
from worker.storage.s3_limits import Limits

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import PartTypeDef

T = TypeVar("T")

MAX_PARTS = 10_000
_MIB = 2**20
_CLEANING = Limits(S3Retry(attempts=1))


class UploadPart(NamedTuple):
    """A piece of the file. Numbers begin with 1."""

    number: int
    offset: int
    size_bytes: int


class SentPart(NamedTuple):
    """A piece that the storage has taken."""

    part: UploadPart
    etag: str
    sha256: bytes


@dataclass(frozen=True)
class Upload:
    """One file on its way.

    Attributes:
        client: The S3 client.
        settings: Part size, threads, names for messages.
        path: The file; must not change meanwhile.
        size_bytes: Its size.
        sha256: Its SHA-256, in hexadecimal.
        target: Where it goes.
        limits: Retries and stop.
        report: Called with the bytes that have arrived.
        keep_parts: Leave the parts sent after a failure that may pass.
    """

    client: S3Client
    settings: StorageSettings
    path: Path
    size_bytes: int
    sha256: str
    target: S3Location
    limits: Limits
    report: Callable[[int], None]
    keep_parts: bool = False

    def run(self) -> None:
        """Upload and verify; nothing is sent where the object is already there and right.

        Raises:
            PackagingError: ``upload_failed``, ``storage_unreachable``, ``storage_denied``; ``artifact_lost`` where the
                file no longer has its SHA-256.
            StopRequested: asked to stop; nothing is left in the storage.
        """
        if not self._is_there(None):
            parts = split(self.size_bytes, self.settings.part_size_bytes)
            sent = self._put(parts[0]) if len(parts) == 1 else self._send_parts(parts)
            if not self._is_there(sent):
                raise PackagingError(
                    ErrorCode.UPLOAD_FAILED,
                    f"{self.target} differs from {self.path} after the upload",
                    fields={"url": str(self.target), "path": str(self.path), "sha256": self.sha256},
                )
        self.report(self.size_bytes)

    def _put(self, part: UploadPart) -> list[bytes]:
        ((_, data),) = self._read([part])
        digest = bytes.fromhex(self.sha256)
        self._ask(
            lambda: self.client.put_object(
                **self._address(),
                Body=data,
                ChecksumSHA256=_base64(digest),
                Metadata={SHA256_METADATA: self.sha256},
            )
        )
        return [digest]

    def _send_parts(self, parts: list[UploadPart]) -> list[bytes]:
        """Send all parts and have them put together; their SHA-256, in order."""
        upload_id, known = self._found_upload() or (self._new_upload(), {})
        sent: list[SentPart] = []
        abandoned = threading.Event()
        limits = self.limits.abandonable(abandoned)

        def arrived(part: SentPart) -> None:
            sent.append(part)
            self.report(sum(done.part.size_bytes for done in sent))

        try:
            run_parallel(
                lambda item: self._send_part(upload_id, *item, known, limits),
                self._read(parts),
                threads=self.settings.concurrency,
                abandoned=abandoned,
                on_done=arrived,
                should_stop=limits.should_stop,
            )
            sent.sort()
            self._complete(upload_id, sent)
        except BaseException as error:
            if not (self.keep_parts and isinstance(error, PackagingError) and error.retryable):
                self._abort(upload_id)
            raise
        return [done.sha256 for done in sent]

    def _new_upload(self) -> str:
        answer = self._ask(
            lambda: self.client.create_multipart_upload(
                **self._address(), ChecksumAlgorithm="SHA256", Metadata={SHA256_METADATA: self.sha256}
            )
        )
        return answer["UploadId"]

    def _read(self, parts: list[UploadPart]) -> Iterator[tuple[UploadPart, bytes]]:
        """The parts with their bytes, in order. The last is given only if the file as a whole has its SHA-256."""
        whole = hashlib.sha256()
        with self.path.open("rb", buffering=0) as file:
            for part in parts:
                data = os.pread(file.fileno(), part.size_bytes, part.offset)
                whole.update(data)
                if part == parts[-1] and whole.hexdigest() != self.sha256:
                    raise PackagingError(
                        ErrorCode.ARTIFACT_LOST,
                        f"{self.path} has changed: sha256 {whole.hexdigest()}, expected {self.sha256}",
                        fields={"path": str(self.path), "expected": self.sha256, "found": whole.hexdigest()},
                    )
                yield part, data

    def _send_part(
        self, upload_id: str, part: UploadPart, data: bytes, known: Mapping[int, PartTypeDef], limits: Limits
    ) -> SentPart:
        digest = hashlib.sha256(data).digest()
        if part.number in known and is_part(known[part.number], data, digest):
            return SentPart(part, known[part.number]["ETag"], digest)
        answer = attempt(
            lambda: self.client.upload_part(
                **self._address(),
                UploadId=upload_id,
                PartNumber=part.number,
                Body=data,
                ChecksumSHA256=_base64(digest),
            ),
            Request(f"uploading part {part.number} of {self.target}", ErrorCode.UPLOAD_FAILED),
            self.settings,
            limits,
        )
        return SentPart(part, answer["ETag"], digest)

    def _complete(self, upload_id: str, sent: list[SentPart]) -> None:
        listed: Any = [
            {"PartNumber": done.part.number, "ETag": done.etag, "ChecksumSHA256": _base64(done.sha256)} for done in sent
        ]
        self._ask(
            lambda: self.client.complete_multipart_upload(
                **self._address(), UploadId=upload_id, MultipartUpload={"Parts": listed}
            )
        )

    def _is_there(self, sent: list[bytes] | None) -> bool:
        """Whether the storage holds exactly this file.

        Its own SHA-256 of the object shows that it does, full or composite. Where it has none, or another one, the
        object is read back: servers write composite checksums in more than one way, and only bytes show a difference.
        So is what was just sent to a server that keeps no metadata.

        Args:
            sent: SHA-256 of the parts just sent; read from the file where nothing was sent yet.
        """
        head = self._head()
        if head is None or head["ContentLength"] != self.size_bytes:
            return False
        if head.get("Metadata", {}).get(SHA256_METADATA, self.sha256 if sent else "") != self.sha256:
            return False
        parts = split(self.size_bytes, self.settings.part_size_bytes)
        digests = sent or [sha256_range(self.path, part.offset, part.size_bytes) for part in parts]
        kept = [
            expectation for expectation in expectations({**head, "Metadata": {}}) if expectation.algorithm == "sha256"
        ]
        for expectation in kept:
            if expectation.holds_for_parts(digests) if expectation.parts else expectation.digest.hex() == self.sha256:
                return True
        return self._read_back(parts, digests)

    def _head(self) -> Mapping[str, Any] | None:
        request = Request(f"checking {self.target}", ErrorCode.UPLOAD_FAILED, missing=ErrorCode.ARTIFACT_LOST)
        try:
            return attempt(
                lambda: self.client.head_object(**self._address(), ChecksumMode="ENABLED"),
                request,
                self.settings,
                self.limits,
            )
        except PackagingError as error:
            if error.code is ErrorCode.ARTIFACT_LOST:
                return None
            raise

    def _read_back(self, parts: list[UploadPart], digests: list[bytes]) -> bool:
        equal: list[bool] = []
        abandoned = threading.Event()
        limits = self.limits.abandonable(abandoned)

        def compare(part: UploadPart) -> bool:
            def read() -> bytes:
                if not part.size_bytes:
                    return b""
                span = f"bytes={part.offset}-{part.offset + part.size_bytes - 1}"
                return self.client.get_object(**self._address(), Range=span)["Body"].read()

            request = Request(f"reading back part {part.number} of {self.target}", ErrorCode.UPLOAD_FAILED)
            data = attempt(read, request, self.settings, limits)
            return hashlib.sha256(data).digest() == digests[part.number - 1]

        run_parallel(
            compare,
            parts,
            threads=self.settings.concurrency,
            abandoned=abandoned,
            on_done=equal.append,
            should_stop=limits.should_stop,
        )
        return all(equal)

    def _abort(self, upload_id: str) -> None:
        """Throw away the parts sent; best effort, for the failure at hand matters more."""
        request = Request(f"aborting the upload of {self.target}")
        with contextlib.suppress(PackagingError):
            attempt(
                lambda: self.client.abort_multipart_upload(**self._address(), UploadId=upload_id),
                request,
                self.settings,
                _CLEANING,
            )

    def _found_upload(self) -> tuple[str, Mapping[int, PartTypeDef]] | None:
        """An unfinished upload of this file, with its parts; others of the same key are aborted.

        Not all credentials may list them; then there is none.
        """
        unfinished: tuple[str, Mapping[int, PartTypeDef]] | None = None
        with contextlib.suppress(PackagingError):
            answer = attempt(
                lambda: self.client.list_multipart_uploads(Bucket=self.target.bucket, Prefix=self.target.key),
                Request(f"listing uploads of {self.target}"),
                self.settings,
                _CLEANING,
            )
            for upload in answer.get("Uploads", []):
                if upload.get("Key") != self.target.key:
                    continue
                parts = self._parts_of(upload["UploadId"])
                if unfinished is None and self._is_ours(parts):
                    unfinished = upload["UploadId"], parts
                else:
                    self._abort(upload["UploadId"])
        return unfinished

    def _parts_of(self, upload_id: str) -> Mapping[int, PartTypeDef]:
        request = Request(f"listing parts of {self.target}")
        parts: dict[int, PartTypeDef] = {}
        marker = 0
        while True:
            after = marker
            answer = attempt(
                lambda: self.client.list_parts(**self._address(), UploadId=upload_id, PartNumberMarker=after),  # noqa: B023
                request,
                self.settings,
                _CLEANING,
            )
            parts |= {part["PartNumber"]: part for part in answer.get("Parts", [])}
            if not answer.get("IsTruncated"):
                return parts
            marker = answer["NextPartNumberMarker"]

    def _is_ours(self, known: Mapping[int, PartTypeDef]) -> bool:
        """Whether parts hold what this file has in their place; one is enough to know, and none are of no use."""
        parts = {part.number: part for part in split(self.size_bytes, self.settings.part_size_bytes)}
        number = max(known, default=0)
        if number not in parts:
            return False
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), parts[number].size_bytes, parts[number].offset)
        return is_part(known[number], data, hashlib.sha256(data).digest())

    def _ask(self, call: Callable[[], T]) -> T:
        return attempt(call, Request(f"uploading {self.target}", ErrorCode.UPLOAD_FAILED), self.settings, self.limits)

    def _address(self) -> dict[str, Any]:
        return {"Bucket": self.target.bucket, "Key": self.target.key}


def is_part(listed: PartTypeDef, data: bytes, sha256: bytes) -> bool:
    """Whether a listed part has these bytes: by its SHA-256, or where the storage lists none, by its tag, an MD5."""
    if listed["Size"] != len(data):
        return False
    if "ChecksumSHA256" in listed:
        return listed["ChecksumSHA256"] == _base64(sha256)
    return listed["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def split(size_bytes: int, part_size_bytes: int) -> list[UploadPart]:
    """The parts of a file; larger ones than wanted where there would be more than 10,000. An empty file is one part."""
    least = -(-size_bytes // MAX_PARTS)
    step = max(part_size_bytes, -(-least // _MIB) * _MIB)
    offsets = range(0, max(size_bytes, 1), step)
    return [UploadPart(number, at, min(step, size_bytes - at)) for number, at in enumerate(offsets, 1)]


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()

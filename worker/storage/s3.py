"""S3-compatible storage: upload, download, list, check. The work is in ``s3_upload`` and ``s3_download``.

Every answer is read in ``api_client.s3``; callers see :class:`PackagingError` and :class:`StopRequested` only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.s3 import Request, S3Location, S3Retry, StorageSettings, attempt, list_objects, make_client
from worker.stop import ShouldStop
from worker.storage.checksums import sha256_file
from worker.storage.objects import ObjectInfo
from worker.storage.s3_download import Download, download_all
from worker.storage.s3_limits import Limits
from worker.storage.s3_upload import Upload

T = TypeVar("T")

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["ObjectInfo", "S3Location", "S3Retry", "S3Storage"]


class S3Storage:
    """One storage. Safe to use from several threads.

    Args:
        settings: Address, credentials, part size, requests at once, time-out of one request.
        retry: How often and how fast failed requests are tried again.
    """

    def __init__(self, settings: StorageSettings, *, retry: S3Retry | None = None) -> None:
        self._settings = settings
        self._retry = retry or S3Retry()

    @functools.cached_property
    def _client(self) -> S3Client:
        return make_client(self._settings)

    def upload_file(
        self,
        path: Path,
        target: S3Location,
        *,
        sha256: str | None = None,
        report: Callable[[int], None] | None = None,
        should_stop: ShouldStop | None = None,
        keep_parts: bool = False,
    ) -> None:
        """Upload a file and verify what has arrived; quick where the same content is already there.

        Args:
            path: The file; must not change meanwhile.
            target: Where it goes; an object of that key is replaced.
            sha256: Its SHA-256, in hexadecimal, where known.
            report: Called with the bytes that have arrived.
            should_stop: Asked between requests.
            keep_parts: Whether parts that have arrived stay after a failure that may pass, for an upload that will be
                tried again; otherwise they are thrown away, as after every other failure. The next upload of the key
                goes on from parts of this file and throws away others.

        Raises:
            PackagingError: ``upload_failed``, ``storage_unreachable``, ``storage_denied``; ``artifact_lost`` where the
                file does not have the SHA-256 given.
            StopRequested: asked to stop.
        """
        Upload(
            client=self._client,
            settings=self._settings,
            path=path,
            size_bytes=path.stat().st_size,
            sha256=sha256 or sha256_file(path, should_stop=should_stop),
            target=target,
            limits=Limits(self._retry, should_stop),
            report=report or _no_report,
            keep_parts=keep_parts,
        ).run()

    def download_file(
        self,
        source: S3Location,
        target: Path,
        *,
        missing: ErrorCode = ErrorCode.DOWNLOAD_FAILED,
        sha256: str | None = None,
        report: Callable[[int, int, str], None] | None = None,
        should_stop: ShouldStop | None = None,
    ) -> None:
        """Download one object; resumed where an earlier attempt was cut off, verified, then renamed.

        Args:
            source: The object.
            target: The file to make.
            missing: Code where there is no such object.
            sha256: What it must have; what the storage says of it where not given.
            report: Called with bytes done, bytes in all, file name.
            should_stop: Asked often.

        Raises:
            PackagingError: ``missing``, ``download_failed``, ``storage_unreachable``, ``storage_denied``,
                ``disk_space_insufficient``, ``output_dir_not_writable``.
            StopRequested: asked to stop; what has arrived stays for the next attempt.
        """
        stored = self.find(source)
        if stored is None:
            raise PackagingError(missing, f"{source} does not exist", fields={"url": str(source)})
        download = Download(self._client, self._settings, source.bucket, stored, target, missing=missing, sha256=sha256)
        limits = Limits(self._retry, should_stop)
        download_all([download], self._settings.concurrency, limits, report or _no_total_report)

    def download_objects(
        self,
        bucket: str,
        targets: Mapping[ObjectInfo, Path],
        *,
        missing: ErrorCode = ErrorCode.DOWNLOAD_FAILED,
        report: Callable[[int, int, str], None] | None = None,
        should_stop: ShouldStop | None = None,
    ) -> None:
        """Download several listed objects in parallel; arguments and errors as :meth:`download_file`."""
        downloads = [
            Download(self._client, self._settings, bucket, info, target, missing=missing)
            for info, target in targets.items()
        ]
        limits = Limits(self._retry, should_stop)
        download_all(downloads, self._settings.concurrency, limits, report or _no_total_report)

    def find(self, location: S3Location) -> ObjectInfo | None:
        """The object at exactly this key.

        Raises:
            PackagingError: ``storage_unreachable``, ``storage_denied``.
        """
        request = Request(f"looking for {location}", missing=ErrorCode.ARTIFACT_LOST)
        try:
            head = self._ask(lambda: self._client.head_object(Bucket=location.bucket, Key=location.key), request)
        except PackagingError as error:
            if error.code is not ErrorCode.ARTIFACT_LOST:
                raise
            self.check_bucket(location.bucket)  # a HEAD says 404 for a missing bucket too
            return None
        return ObjectInfo(location.key, head["ContentLength"], head["ETag"])

    def list_objects(self, prefix: S3Location, should_stop: ShouldStop | None = None) -> list[ObjectInfo]:
        """All objects below a prefix, which ends at a slash whether or not one is written.

        Raises:
            PackagingError: ``storage_unreachable``, ``storage_denied``.
            StopRequested: asked to stop.
        """
        limits = Limits(self._retry, should_stop)
        listed = list_objects(self._client, self._settings, prefix, limits)
        return [ObjectInfo(entry["Key"], entry["Size"], entry["ETag"]) for entry in listed]

    def delete(self, location: S3Location) -> None:
        """Remove an object; nothing happens where there is none.

        Raises:
            PackagingError: ``storage_unreachable``, ``storage_denied``.
        """
        request = Request(f"deleting {location}")
        self._ask(lambda: self._client.delete_object(Bucket=location.bucket, Key=location.key), request)

    def check_bucket(self, bucket: str) -> None:
        """Ask for a bucket.

        Raises:
            PackagingError: ``storage_unreachable``; ``storage_denied`` where it does not exist or is not ours.
        """
        request = Request(f"asking for bucket {bucket}")
        self._ask(lambda: self._client.head_bucket(Bucket=bucket), request)

    def _ask(self, call: Callable[[], T], request: Request) -> T:
        return attempt(call, request, self._settings, Limits(self._retry))


def _no_report(done_bytes: int) -> None:
    """Say nothing."""


def _no_total_report(done_bytes: int, total_bytes: int, name: str) -> None:
    """Say nothing."""

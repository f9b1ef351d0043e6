"""The files of a run in object storage."""

from __future__ import annotations

import functools
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from api_client.contract.errors import ErrorCode
from api_client.runs.files import ADAPTER_SUBDIRECTORIES, RunFile
from api_client.s3 import Request, S3Location, StorageSettings, attempt, list_objects, make_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class S3RunFiles:
    """A run below an ``s3://`` prefix; nothing is asked before its files are.

    Args:
        url: The prefix.
        settings: The storage.

    Raises:
        PackagingError: ``request_invalid``.
    """

    def __init__(self, url: str, settings: StorageSettings) -> None:
        self._prefix = S3Location.parse(url)
        self._settings = settings

    @property
    def location(self) -> str:
        """The URL."""
        return str(self._prefix)

    @functools.cached_property
    def _client(self) -> S3Client:
        return make_client(self._settings)

    def files(self) -> dict[str, RunFile] | None:
        """Objects below the prefix, as deep as checkpoints go.

        Raises:
            PackagingError: ``storage_unreachable``, ``storage_denied``, ``settings_invalid``, ``dependency_missing``.
        """
        start = len(self._prefix.key) + 1 if self._prefix.key else 0
        files = {
            listed["Key"][start:]: RunFile(listed["Size"], listed["LastModified"])
            for listed in list_objects(self._client, self._settings, self._prefix)
        }
        inside = {"/".join(PurePosixPath(name).parts[:2]) + "/": file for name, file in files.items() if _is_deep(name)}
        directories = {name: RunFile(0, file.time) for name, file in inside.items()}
        return directories | {name: file for name, file in files.items() if _is_of_interest(name)} or None

    def read(self, name: str, start: int, length: int) -> bytes:
        """A part of an object.

        Raises:
            PackagingError: ``download_failed``, ``storage_unreachable``, ``storage_denied``.
        """
        if length <= 0:
            return b""
        source = self._prefix.child(name)
        part = f"bytes={start}-{start + length - 1}"
        request = Request(f"reading {source}", ErrorCode.DOWNLOAD_FAILED, ErrorCode.DOWNLOAD_FAILED)

        def transfer() -> bytes:
            return self._client.get_object(Bucket=source.bucket, Key=source.key, Range=part)["Body"].read()

        return attempt(transfer, request, self._settings)


def _is_deep(name: str) -> bool:
    return len(PurePosixPath(name).parts) > 2


def _is_of_interest(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return 1 <= len(parts) <= 2 or (len(parts) == 3 and parts[1] in ADAPTER_SUBDIRECTORIES)

"""Object storage for the command line: runs on ``s3://`` and downloads. Uses boto3, which the worker extra brings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api_client.address import stack_file
from api_client.errors import ErrorCode, PackagingError
from api_client.run_files import ADAPTER_SUBDIRECTORIES, RunFile

_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "401"}


def open_storage(endpoint_url: str | None = None) -> Any:
    """A boto3 client for ``TRAINPACK_S3_*``, else for the running embedded stack, else for boto3's own defaults.

    Args:
        endpoint_url: Another address of the same storage.

    Raises:
        PackagingError: ``dependency_missing``.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            "s3:// needs boto3, which is not installed",
            remedy="Install it: pip install 'trainpack[worker]'.",
            fields={"module": "boto3", "extra": "worker"},
        ) from error
    found = _settings()
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url or found.get("endpoint_url"),
        region_name=found.get("region") or "us-east-1",
        aws_access_key_id=found.get("access_key"),
        aws_secret_access_key=found.get("secret_key"),
        config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 2}, s3={"addressing_style": "path"}),
    )


def _settings() -> dict[str, str]:
    names = ("endpoint_url", "region", "access_key", "secret_key")
    given = {name: value for name in names if (value := os.environ.get(f"TRAINPACK_S3_{name.upper()}"))}
    if given:
        return given
    try:
        stored = json.loads(stack_file().read_text("utf-8"))["s3"]
        return {name: str(stored[name]) for name in names if stored.get(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


@contextmanager
def mapped_errors(url: str) -> Iterator[None]:
    """Translate boto3's errors.

    Raises:
        PackagingError: ``storage_unreachable``, ``storage_denied``, ``download_failed``.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        kind = ErrorCode.STORAGE_DENIED if code in _DENIED else ErrorCode.DOWNLOAD_FAILED
        raise PackagingError(kind, f"{url}: {code}", fields={"url": url, "code": code}) from error
    except NoCredentialsError as error:
        raise PackagingError(ErrorCode.STORAGE_DENIED, f"{url}: no credentials are set", fields={"url": url}) from error
    except BotoCoreError as error:
        raise PackagingError(ErrorCode.STORAGE_UNREACHABLE, f"{url}: {error}", fields={"url": url}) from error


class S3RunFiles:
    """A training run below an ``s3://`` prefix, for ``list_checkpoints``."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.location = url.rstrip("/")
        self._bucket, self._prefix = split_url(url)

    def files(self) -> dict[str, RunFile] | None:
        """Objects below the prefix, as deep as checkpoints go."""
        root = f"{self._prefix}/" if self._prefix else ""
        found: dict[str, RunFile] = {}
        with mapped_errors(self.location):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=root):
                for entry in page.get("Contents", ()):
                    name = entry["Key"].removeprefix(root)
                    if _is_of_interest(name):
                        found[name] = RunFile(entry["Size"], entry["LastModified"])
        return found or None

    def read(self, name: str, start: int, length: int) -> bytes:
        """A part of an object."""
        if length <= 0:
            return b""
        key = f"{self._prefix}/{name}" if self._prefix else name
        with mapped_errors(f"{self.location}/{name}"):
            part = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")
            body: bytes = part["Body"].read()
        return body


def _is_of_interest(name: str) -> bool:
    parts = Path(name).parts
    return 1 <= len(parts) <= 2 or (len(parts) == 3 and parts[1] in ADAPTER_SUBDIRECTORIES)

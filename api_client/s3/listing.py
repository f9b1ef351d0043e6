"""What lies below a prefix, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from api_client.s3.edge import Pace, Request, attempt
from api_client.s3.location import S3Location
from api_client.s3.settings import StorageSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef


def list_objects(
    client: S3Client, settings: StorageSettings, prefix: S3Location, pace: Pace | None = None
) -> Iterator[ObjectTypeDef]:
    """All objects below a prefix, which ends at a slash whether or not one is written.

    Raises:
        PackagingError: ``storage_unreachable``, ``storage_denied``.
        Exception: what ``pace.check`` raises.
    """
    start = f"{prefix.key}/" if prefix.key else ""
    token: dict[str, Any] = {}
    while True:
        answer = attempt(
            lambda: client.list_objects_v2(Bucket=prefix.bucket, Prefix=start, **token),  # noqa: B023
            Request(f"listing {prefix}"),
            settings,
            pace,
        )
        yield from answer.get("Contents", [])
        if not answer.get("IsTruncated"):
            return
        token = {"ContinuationToken": answer["NextContinuationToken"]}

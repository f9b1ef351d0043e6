"""S3-compatible storage as the command line, the console and the worker all meet it. boto3 is imported on first use.

Reading order: ``settings`` (where it is), ``location`` (``s3://bucket/key``), ``edge`` (clients, errors, retries). The
worker's transfers stand on this in ``worker.storage.s3``; runs that lie there in ``api_client.runs``.
"""

from api_client.s3.edge import (
    Pace,
    Request,
    S3Retry,
    attempt,
    can_retry,
    make_client,
    plain_endpoint,
    storage_error,
    storage_errors,
)
from api_client.s3.listing import list_objects
from api_client.s3.location import S3Location
from api_client.s3.reading import object_blocks
from api_client.s3.settings import StorageSettings, settings_from_here

__all__ = [
    "Pace",
    "Request",
    "S3Location",
    "S3Retry",
    "StorageSettings",
    "attempt",
    "can_retry",
    "list_objects",
    "make_client",
    "object_blocks",
    "plain_endpoint",
    "settings_from_here",
    "storage_error",
    "storage_errors",
]

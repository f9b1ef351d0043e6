"""Reading an object from its beginning to its end."""

from __future__ import annotations

from collections.abc import Iterator

from api_client.s3.edge import Request, make_client, storage_errors
from api_client.s3.location import S3Location
from api_client.s3.settings import StorageSettings

_BLOCK_BYTES = 4 * 2**20


def object_blocks(source: S3Location, settings: StorageSettings, request: Request) -> Iterator[bytes]:
    """The bytes of an object, block by block; the storage is asked when the first is taken.

    Raises:
        PackagingError: as :func:`~api_client.s3.edge.storage_error` says of the request, and as ``make_client``.
    """
    with storage_errors(request, settings):
        yield from (
            make_client(settings).get_object(Bucket=source.bucket, Key=source.key)["Body"].iter_chunks(_BLOCK_BYTES)
        )

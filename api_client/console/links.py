"""Uploaded files: a link to fetch one from the object storage itself, and the bytes of one where several are sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, Job
from api_client.s3 import (
    Request,
    S3Location,
    StorageSettings,
    make_client,
    object_blocks,
    settings_from_here,
    storage_errors,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Links:
    """Signs links, for which the storage is asked nothing, and reads files. Thread-safe.

    Args:
        public_endpoint_url: Address of the storage as browsers see it; the console's own where not given.
        valid_s: How long a link can be used, in seconds.
    """

    def __init__(self, public_endpoint_url: str | None, valid_s: int) -> None:
        self._endpoint_url = public_endpoint_url
        self._valid_s = valid_s
        self._lock = threading.Lock()
        self._opened: tuple[S3Client, StorageSettings] | None = None

    def sign(self, artifact: Artifact) -> str:
        """A link to an uploaded file.

        Raises:
            PackagingError: ``output_not_found`` if it was not uploaded; ``dependency_missing``, ``storage_denied``.
        """
        if artifact.url is None:
            raise not_uploaded(artifact)
        source = S3Location.parse(artifact.url)
        client, settings = self._storage()
        with storage_errors(Request(f"signing a link to {source}"), settings):
            return client.generate_presigned_url(
                "get_object", Params={"Bucket": source.bucket, "Key": source.key}, ExpiresIn=self._valid_s
            )

    def open(self, artifact: Artifact) -> Iterator[bytes]:
        """The bytes of an uploaded file, read from the storage as the console reaches it.

        Raises:
            PackagingError: as :meth:`sign`, and ``storage_unreachable``.
        """
        if artifact.url is None:
            raise not_uploaded(artifact)
        source = S3Location.parse(artifact.url)
        yield from object_blocks(source, settings_from_here(), Request(f"reading {source}"))

    def try_sign(self, artifact: Artifact) -> str | None:
        """A link, where one can be made."""
        try:
            return self.sign(artifact)
        except PackagingError:
            return None

    def _storage(self) -> tuple[S3Client, StorageSettings]:
        with self._lock:
            if self._opened is None:
                settings = settings_from_here()
                if self._endpoint_url is not None:
                    settings = settings.model_copy(update={"endpoint_url": self._endpoint_url})
                self._opened = make_client(settings), settings
            return self._opened


def not_uploaded(artifact: Artifact) -> PackagingError:
    """Error for a file that lies on a worker's disk alone."""
    return PackagingError(
        ErrorCode.OUTPUT_NOT_FOUND,
        f"{artifact.name} was not uploaded; it lies at {artifact.path}",
        fields={"name": artifact.name, "path": artifact.path},
    )


def find_output(job: Job, name: str) -> Artifact:
    """A published file of a job.

    Raises:
        PackagingError: ``output_not_found``.
    """
    for artifact in job.outputs:
        if artifact.name == name:
            return artifact
    raise PackagingError(
        ErrorCode.OUTPUT_NOT_FOUND,
        f"job {job.id} has no output {name!r}; it has {', '.join(artifact.name for artifact in job.outputs) or 'none'}",
        fields={"job_id": job.id, "name": name},
    )

"""Download links: an uploaded file is fetched from the object storage itself, never through the console."""

from __future__ import annotations

import threading
from typing import Any

from api_client.cli.s3 import mapped_errors, open_storage, split_url
from api_client.errors import ErrorCode, PackagingError
from api_client.job import Artifact, Job


class Links:
    """Signs links. Thread-safe; the storage is asked nothing.

    Args:
        public_endpoint_url: Address of the storage as browsers see it; the console's own where not given.
        valid_s: How long a link can be used, in seconds.
    """

    def __init__(self, public_endpoint_url: str | None, valid_s: int) -> None:
        self._endpoint_url = public_endpoint_url
        self._valid_s = valid_s
        self._lock = threading.Lock()
        self._storage: Any = None

    def sign(self, artifact: Artifact) -> str:
        """A link to an uploaded file.

        Raises:
            PackagingError: ``output_not_found`` if it was not uploaded; ``dependency_missing``, ``storage_denied``.
        """
        if artifact.url is None:
            raise PackagingError(
                ErrorCode.OUTPUT_NOT_FOUND,
                f"{artifact.name} was not uploaded; it lies at {artifact.path}",
                fields={"name": artifact.name, "path": artifact.path},
            )
        bucket, key = split_url(artifact.url)
        with mapped_errors(artifact.url):
            link: str = self._client().generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=self._valid_s
            )
        return link

    def try_sign(self, artifact: Artifact) -> str | None:
        """A link, where one can be made."""
        try:
            return self.sign(artifact)
        except PackagingError:
            return None

    def _client(self) -> Any:
        with self._lock:
            if self._storage is None:
                self._storage = open_storage(self._endpoint_url)
            return self._storage


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
        f"job {job.id} has no output {name!r}; it has {', '.join(one.name for one in job.outputs) or 'none'}",
        fields={"job_id": job.id, "name": name},
    )

"""Training runs in object storage, for ``api_client.runs.checkpoints``."""

from __future__ import annotations

from api_client.runs.files import RunFiles
from api_client.runs.s3_files import S3RunFiles
from api_client.s3 import S3Location
from config.settings import StageSettings
from worker.storage.paths import check_bucket


def open_run(url: str, settings: StageSettings) -> RunFiles:
    """The files below an ``s3://`` prefix; nothing is asked yet.

    Raises:
        PackagingError: ``path_not_allowed``, ``request_invalid``, ``settings_invalid``, ``dependency_missing``.
    """
    check_bucket(S3Location.parse(url).bucket, settings.allowed_buckets)
    return S3RunFiles(url, settings.storage)

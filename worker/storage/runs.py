"""Training runs in object storage, for ``api_client.checkpoints``."""

from __future__ import annotations

from api_client.cli.s3 import S3RunFiles
from api_client.run_files import RunFiles
from config.settings import StageSettings
from worker.storage.location import S3Location
from worker.storage.paths import check_bucket
from worker.storage.s3_edge import make_client


def open_run(url: str, settings: StageSettings) -> RunFiles:
    """The files below an ``s3://`` prefix; nothing is asked yet.

    Raises:
        PackagingError: ``path_not_allowed``, ``request_invalid``, ``settings_invalid``, ``dependency_missing``.
    """
    check_bucket(S3Location.parse(url).bucket, settings.allowed_buckets)
    return S3RunFiles(make_client(settings.storage), url)

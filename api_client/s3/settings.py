"""Address and credentials of the storage: a worker has them from its settings, a client from where it runs."""

from __future__ import annotations

import json
import os

from pydantic import BaseModel, ConfigDict, SecretStr

from api_client.ledger.address import stack_file


class StorageSettings(BaseModel):
    """Address and credentials of the S3-compatible storage. Without an endpoint and bucket nothing is uploaded."""

    model_config = ConfigDict(frozen=True)

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    bucket: str | None = None
    prefix: str = ""
    part_size_bytes: int = 16 * 2**20
    concurrency: int = 4
    timeout_s: float = 30.0


def settings_from_here() -> StorageSettings:
    """``TRAINPACK_S3_*`` where set, else the running embedded stack, else boto3's own defaults."""
    names = ("endpoint_url", "region", "access_key", "secret_key")
    given = {name: value for name in names if (value := os.environ.get(f"TRAINPACK_S3_{name.upper()}"))}
    return StorageSettings.model_validate(given or _of_the_embedded_stack(names))


def _of_the_embedded_stack(names: tuple[str, ...]) -> dict[str, str]:
    try:
        stored = json.loads(stack_file().read_text("utf-8"))["s3"]
        return {name: str(stored[name]) for name in names if stored.get(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

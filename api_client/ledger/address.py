"""Where Redis is: finding the address, hiding its password, opening connections."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.text_redis import TextRedis
from api_client.ledger.writes import WriteRefusal, refusal_of

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


def connect(url: str, timeout_s: float) -> TextRedis:
    """Make a client; nothing is sent yet. Answers are text; no call blocks longer than ``timeout_s``.

    Raises:
        PackagingError: ``settings_invalid`` for a URL that cannot be read.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "encoding_errors": "replace",  # one value of no encoding must not end the reading of all others
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "health_check_interval": 30,
        "retry": Retry(NoBackoff(), 0),
    }
    if url.startswith("sentinel://"):
        address = parse_sentinel(url)
        sentinel: Any = cast("Any", Sentinel)(
            list(address.hosts),
            sentinel_kwargs={"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s},
            username=address.username,
            password=address.password,
            **options,
        )
        return cast("TextRedis", sentinel.master_for(address.service, db=address.db))
    try:
        return cast("TextRedis", Redis.from_url(url, **options))
    except ValueError as error:
        raise PackagingError(ErrorCode.SETTINGS_INVALID, f"Redis URL {masked_url(url)}: {error}") from error


def broker_address(url: str) -> tuple[str, dict[str, Any]]:
    """The same place as kombu writes it: URL and transport options."""
    if not url.startswith("sentinel://"):
        return url, {}
    address = parse_sentinel(url)
    username, password = (quote(text or "", safe="") for text in (address.username, address.password))
    user = f"{username}:{password}@" if username or password else ""
    places = ";".join(f"sentinel://{user}{host}:{port}/{address.db}" for host, port in address.hosts)
    return places, {"master_name": address.service}


def denied(url: str, prefix: str, error: Exception) -> PackagingError:
    """The error for a user who may not do what was asked."""
    return PackagingError(
        ErrorCode.REDIS_DENIED,
        f"Redis at {_host_of(url)} does not let this user do that under the prefix {prefix!r}: {error}",
        fields={"redis_url": masked_url(url), "prefix": prefix},
    )


def no_writes(url: str, refusal: WriteRefusal, reason: str) -> PackagingError:
    """The error for a Redis that answers and takes no writes."""
    return PackagingError(
        ErrorCode.REDIS_NO_WRITES,
        f"Redis at {_host_of(url)} takes no writes, since {reason}",
        fields={"redis_url": masked_url(url), "host": _host_of(url), "refusal": refusal.value},
    )


def _host_of(url: str) -> str:
    parts = urlsplit(url)
    return masked_url(url) if parts.scheme == "sentinel" else f"{parts.hostname}:{parts.port or 6379}"


def unreachable(url: str, error: Exception) -> PackagingError:
    """The error for a Redis that does not answer or takes no writes, naming the address without its password."""
    host = _host_of(url)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if (refusal := refusal_of(error)) is not None:
        return no_writes(url, refusal, f"{refusal.fact}: {reason}")
    return PackagingError(
        ErrorCode.REDIS_UNREACHABLE,
        f"Redis at {host} does not answer: {reason}",
        fields={"redis_url": masked_url(url), "host": host},
    )

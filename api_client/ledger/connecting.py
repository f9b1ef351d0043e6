"""Opening connections to Redis, and the errors for one that refuses or does not answer."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.address import masked_url, parse_sentinel
from api_client.ledger.text_redis import TextRedis
from api_client.ledger.writes import WriteRefusal, refusal_of


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

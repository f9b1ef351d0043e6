"""Callbacks: how a job's end is announced, and how a receiver knows that an announcement is genuine.

A worker POSTs JSON (``{"event": "job.finished", "delivery": ..., "job": {...}}``) with these headers:

- ``Trainpack-Delivery``: the same for every try of one announcement; a receiver drops those it has seen.
- ``Trainpack-Timestamp``: Unix seconds of this try.
- ``Trainpack-Signature``: ``v1=`` and the hex HMAC-SHA256, keyed with the secret that both sides hold, over the
  timestamp, a full stop and the body.

Any answer from 200 to 299 settles it. Delivery is at least once. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import SplitResult, urlsplit

DELIVERY_HEADER = "Trainpack-Delivery"
TIMESTAMP_HEADER = "Trainpack-Timestamp"
SIGNATURE_HEADER = "Trainpack-Signature"
_SCHEME = "v1="
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def check_callback_url(url: str) -> str:
    """Refuse what is no plain web address.

    Raises:
        ValueError: another scheme than http and https, no host, a user name or password, a space or control character.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://HOST/... or https://HOST/...")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password; callbacks are signed")
    if any(not character.isprintable() or character.isspace() for character in url) or not url.isascii():
        raise ValueError("must be ASCII without spaces; escape other characters")
    _ = parts.port  # Raises where it is no number.
    return url


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, also behind the forms in which IPv6 wraps IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = _wrapped(ip) if isinstance(ip, IPv6Address) else None
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _wrapped(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def private_host(url: str) -> str | None:
    """The host of a web address that is not one of the open internet by its very name; None for any other.

    What a name leads to only who delivers can tell, and tells it in the job's log.
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return host
    try:
        return None if is_public(host) else host
    except ValueError:  # a name
        return None


def shown_url(url: str) -> str:
    """The address without its query, which may hold a token: for logs and records."""
    parts = urlsplit(url)
    return SplitResult(parts.scheme, parts.netloc, parts.path, "...", "").geturl() if parts.query else url


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """Value of the signature header."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return _SCHEME + digest.hexdigest()


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, tolerance_s: float = 300.0) -> bool:
    """Whether a callback was signed with this secret, not long ago. For receivers.

    Args:
        secret: As the workers have it in ``TRAINPACK_CALLBACK_SECRET``.
        headers: Of the request, in any case.
        body: As received, before any parsing.
        tolerance_s: Age (or clock difference) above which a signature counts for nothing, against replays.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        timestamp = int(given[TIMESTAMP_HEADER.lower()])
        signature = given[SIGNATURE_HEADER.lower()]
    except (KeyError, ValueError):
        return False
    genuine = hmac.compare_digest(sign(secret, timestamp, body).encode(), signature.encode())
    return genuine and abs(time.time() - timestamp) <= tolerance_s

"""The client that commands and pages use, and whether the service shares this machine's files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from api_client.ledger.address import find_redis_url

if TYPE_CHECKING:
    from api_client.client import PackagingClient

LOOPBACK = {"127.0.0.1", "localhost", "::1", None}


def open_client(redis_url: str | None = None, timeout_s: float = 5.0) -> PackagingClient:
    """A client of the service that the environment names, else of the running embedded stack."""
    from api_client.client import PackagingClient  # commands that ask no service load nothing of Redis

    return PackagingClient(
        redis_url, key_prefix=os.environ.get("TRAINPACK_KEY_PREFIX") or "trainpack", timeout_s=timeout_s
    )


def service_is_local() -> bool:
    """Whether the service listens on this machine only, and so most likely reads this machine's files."""
    return urlsplit(find_redis_url()).hostname in LOOPBACK

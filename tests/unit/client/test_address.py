"""Addresses of Redis: found, taken apart, and never shown with a password."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kombu import Connection

from api_client import PackagingError
from api_client.ledger.address import (
    DEFAULT_REDIS_URL,
    SentinelAddress,
    broker_address,
    find_redis_url,
    masked_url,
    parse_sentinel,
)
from api_client.ledger.connecting import connect, unreachable


def test_the_nearest_address_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINPACK_HOME", str(tmp_path))
    monkeypatch.delenv("TRAINPACK_REDIS_URL", raising=False)
    assert find_redis_url() == DEFAULT_REDIS_URL
    for broken in ("", "[]", '{"s3": {}}', "{"):
        (tmp_path / "stack.json").write_text(broken)
        assert find_redis_url() == DEFAULT_REDIS_URL
    (tmp_path / "stack.json").write_text(json.dumps({"redis_url": "redis://stack:1/0"}))
    assert find_redis_url() == "redis://stack:1/0"
    monkeypatch.setenv("TRAINPACK_REDIS_URL", "redis://env:1/0")
    assert find_redis_url() == "redis://env:1/0"
    assert find_redis_url("redis://given:1/0") == "redis://given:1/0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:pw@h:1/0", "redis://:***@h:1/0"),
        ("rediss://user:p@ss@h:1/0", "rediss://user:***@h:1/0"),
        ("sentinel://:pw@a:1,b:2/mymaster/0", "sentinel://:***@a:1,b:2/mymaster/0"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert masked_url(url) == shown
    assert "pw" not in str(unreachable(url, OSError("refused")).to_dict())


def test_sentinel_addresses() -> None:
    assert parse_sentinel("sentinel://:p%40w@a:1,b/main/3") == SentinelAddress(
        (("a", 1), ("b", 26379)), "main", 3, "p@w"
    )
    assert broker_address("sentinel://a:1,b:2/main/3") == (
        "sentinel://a:1/3;sentinel://b:2/3",
        {"master_name": "main"},
    )
    assert parse_sentinel("sentinel://user:pw@a/main") == SentinelAddress((("a", 26379),), "main", 0, "pw", "user")
    assert broker_address("redis://h/0") == ("redis://h/0", {})
    for wrong in ("sentinel://a:1", "sentinel://a:x/main", "sentinel:///main", "sentinel://a:1/main/zero"):
        with pytest.raises(PackagingError) as caught:
            parse_sentinel(wrong)
        assert caught.value.code == "settings_invalid"
    with pytest.raises(PackagingError) as caught:
        connect("http://:pw@h", 1)
    assert caught.value.code == "settings_invalid"
    assert "pw" not in caught.value.message


def test_the_broker_behind_sentinel_gets_the_same_user_and_password() -> None:
    places, options = broker_address("sentinel://train%3Apack:p%2Fw%40%25@a:1,b:2/main/3")
    broker = Connection(places, transport_options=options)
    assert (broker.userid, broker.password, broker.virtual_host) == ("train:pack", "p/w@%", "3")
    assert [urlsplit(place).port for place in broker.alt] == [1, 2]

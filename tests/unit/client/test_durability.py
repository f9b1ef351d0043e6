from __future__ import annotations

from typing import Any

import pytest

from api_client.ledger.durability import loads_unasked, server_name, troubles

OLD: dict[str, Any] = {"redis_version": "7.0.15", "aof_enabled": 1}
FINE: dict[str, Any] = {"appendfsync": "everysec", "save": "", "user": "trainpack", "refusal": ""}


@pytest.mark.parametrize(
    ("info", "known"),
    [
        ({"redis_version": "7.0.15"}, False),
        ({"redis_version": "8.2.1"}, False),
        ({"redis_version": "8.6.0"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.4"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.1"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "10.0.0-rc1"}, True),
        ({}, False),
    ],
)
def test_versions_that_ask_what_default_may_do(info: dict[str, Any], known: bool) -> None:
    assert loads_unasked(info) is known


def test_a_default_user_without_rights_is_trouble_only_where_the_server_asks_and_appends() -> None:
    denied = FINE | {"refusal": "User default has no permissions to run the 'set' command"}
    assert troubles(OLD, **FINE) == ()
    assert "a restart loses all jobs" in troubles(OLD, **denied)[0]
    assert "does not tell" in troubles(OLD, **(FINE | {"refusal": None}))[0]
    assert troubles(OLD, **(denied | {"user": None})) == ()
    assert troubles(OLD | {"valkey_version": "9.1.2"}, **denied) == ()
    assert troubles(OLD | {"aof_enabled": 0}, **(denied | {"save": "3600 1"})) == (
        "appendonly is off: a restart of Redis loses jobs since the last snapshot; set it to yes",
    )


def test_what_the_server_says_of_its_files_is_passed_on() -> None:
    bad = OLD | {"loading": 1, "aof_last_write_status": "err", "rdb_last_bgsave_status": "err"}
    said = " ".join(troubles(bad, **FINE))
    assert "still loads" in said
    assert "append-only file failed (aof_last_write_status: err)" in said
    assert "snapshot could not be written" in said


def test_servers_are_named_as_what_they_are() -> None:
    assert server_name({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) == "Valkey 9.1.2"
    assert server_name({"redis_version": "7.0.15"}) == "Redis 7.0.15"

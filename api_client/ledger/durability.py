"""Does a server keep what it is given over a restart? Judged by what it says of itself. Pure.

A server that loads an append-only file runs it as its user ``default``. Older ones check that user's rights once more
at every EXEC, and each of our scripts is written as a transaction: where ``default`` may not write, all of them are
left out, and every job is gone without an error (reports: valkey-io/valkey#3983, redis/redis#14541).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LOADS_UNASKED: dict[str, tuple[int, int, int]] = {"valkey": (9, 1, 2), "redis": (8, 6, 0)}
"""First version of each server that loads its file whatever its users may do. Older ones count as not doing so."""

_STATUSES = {
    "aof_last_write_status": "the last write to the append-only file failed",
    "aof_last_bgrewrite_status": "the append-only file could not be rewritten and grows without end",
    "rdb_last_bgsave_status": "the last snapshot could not be written",
}
_MAY_WRITE = "give it rights in the ACL file, it stays off: user default off ~* &* +@all"


def troubles(
    info: Mapping[str, Any], *, appendfsync: str, save: str, user: str | None, refusal: str | None
) -> tuple[str, ...]:
    """What an operator should change, each with its remedy.

    Args:
        info: The answer to ``INFO``.
        appendfsync: Setting of that name, empty where it may not be read.
        save: Setting of that name, empty where it may not be read.
        user: Name this client logs in with; ``None`` for ``default``.
        refusal: Why ``default`` may not write, as ``ACL DRYRUN`` says; empty where it may, ``None`` where the server
            does not tell.
    """
    lines = []
    if int(info.get("loading") or 0):
        lines.append("the server still loads its data; wait until it has")
    appends = bool(int(info.get("aof_enabled") or 0))
    if not appends and not save:
        lines.append("appendonly is off: a restart of Redis loses all jobs; set it to yes")
    elif not appends:
        lines.append("appendonly is off: a restart of Redis loses jobs since the last snapshot; set it to yes")
    elif appendfsync == "no":
        lines.append("appendfsync is no: a crash of the machine loses half a minute; set it to everysec")
    lines += [
        f"{what} ({name}: {info[name]}); look at the server's log and its disk"
        for name, what in _STATUSES.items()
        if str(info.get(name) or "ok") != "ok"
    ]
    if appends and user not in (None, "default") and not loads_unasked(info):
        lines += _default_user(server_name(info), refusal)
    return tuple(lines)


def loads_unasked(info: Mapping[str, Any]) -> bool:
    """Whether this version loads its append-only file whatever the user ``default`` may do."""
    kind = "valkey" if "valkey_version" in info else "redis"
    parts = re.findall(r"\d+", str(info.get(f"{kind}_version", "")))
    return tuple(int(part) for part in parts[:3]) >= LOADS_UNASKED[kind]


def server_name(info: Mapping[str, Any]) -> str:
    """``Valkey 9.1.2`` or ``Redis 7.0.15``."""
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', '')}".strip()


def _default_user(server: str, refusal: str | None) -> list[str]:
    if refusal == "":
        return []
    if refusal is None:
        return [
            f"{server} does not tell what its user default may do, without which it would lose all jobs at a restart; "
            f"let this user ask (+acl|dryrun), and {_MAY_WRITE}"
        ]
    return [
        f"{server} loads its append-only file as its user default, which may not write ({refusal}): "
        f"a restart loses all jobs; {_MAY_WRITE}"
    ]

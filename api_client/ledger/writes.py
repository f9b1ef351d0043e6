"""Does a server take writes? Judged by what it says of itself, and by what it refuses. Pure.

Such a server answers, so everything that only reads works; but no job can be submitted and no lease renewed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError


class WriteRefusal(StrEnum):
    """Why a server takes no writes."""

    FULL = "full"
    REPLICA = "replica"
    DISK = "disk"
    REPLICAS = "replicas"

    @property
    def fact(self) -> str:
        """As a sentence."""
        return _FACTS[self]


_FACTS = {
    WriteRefusal.FULL: "its memory is full (maxmemory)",
    WriteRefusal.REPLICA: "it is a read-only replica of another server",
    WriteRefusal.DISK: "it cannot write its data to disk",
    WriteRefusal.REPLICAS: "too few replicas follow it (min-replicas-to-write)",
}


def refusal_of(error: BaseException) -> WriteRefusal | None:
    """What an error of the client says; ``None`` of another kind of error."""
    if isinstance(error, OutOfMemoryError):
        return WriteRefusal.FULL
    if isinstance(error, ReadOnlyError):
        return WriteRefusal.REPLICA
    if not isinstance(error, RedisError):
        return None
    text = str(error)
    if text.startswith("MISCONF"):
        return WriteRefusal.DISK
    return WriteRefusal.REPLICAS if text.startswith("NOREPLICAS") else None


def refusal_by(info: Mapping[str, Any], config: Mapping[str, str]) -> WriteRefusal | None:
    """Why a server would refuse a write now; ``None`` where it would not.

    Args:
        info: The answer to ``INFO``.
        config: ``maxmemory-policy``, ``stop-writes-on-bgsave-error``, ``save``, ``min-replicas-to-write`` as far as
            they may be read.
    """
    if info.get("role") == "slave" and int(info.get("slave_read_only", 1)):
        return WriteRefusal.REPLICA
    most = int(info.get("maxmemory") or 0)
    used = int(info.get("used_memory") or 0) - int(info.get("mem_not_counted_for_evict") or 0)
    policy = config.get("maxmemory-policy") or str(info.get("maxmemory_policy", ""))
    if most and used > most and policy == "noeviction":
        return WriteRefusal.FULL
    stops = config.get("stop-writes-on-bgsave-error", "yes") == "yes" and config.get("save", "") != ""
    if stops and str(info.get("rdb_last_bgsave_status", "ok")) != "ok":
        return WriteRefusal.DISK
    if int(info.get("aof_enabled") or 0) and str(info.get("aof_last_write_status", "ok")) != "ok":
        return WriteRefusal.DISK
    needed = int(config.get("min-replicas-to-write") or 0)
    if needed and int(info.get("min_slaves_good_slaves", needed)) < needed:
        return WriteRefusal.REPLICAS
    return None

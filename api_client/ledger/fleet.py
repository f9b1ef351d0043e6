"""Reading what workers say of themselves, and which queues and hosts are paused: one round trip, then a second."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from api_client.contract.fleet import Pause, WorkerInfo
from api_client.ledger.keys import Keys
from api_client.ledger.text_redis import TextRedis
from api_client.ledger.waiting import Fleet

WORKERS_MAX = 5000
"""Workers that are read at most."""


def read_fleet(redis: TextRedis, keys: Keys, call: Callable[[Callable[[], Any]], Any]) -> Fleet:
    """Read the fleet.

    Args:
        redis: A connection pool.
        keys: Names of keys.
        call: Runs an action through short outages.
    """

    def first() -> list[Any]:
        pipe = redis.pipeline(transaction=False)
        pipe.zrange(keys.named("workers"), 0, WORKERS_MAX - 1)
        pipe.hgetall(keys.named("paused"))
        pipe.time()
        return pipe.execute()

    names, paused, (seconds, micros) = call(first)

    def second() -> list[Any]:
        pipe = redis.pipeline(transaction=False)
        for name in names:
            pipe.hget(keys.worker(name), "info")
        return pipe.execute()

    records = call(second) if names else []
    now = datetime.fromtimestamp(int(seconds) + int(micros) / 1e6, UTC)
    return Fleet(tuple(_workers(records)), read_pauses(paused), now)


def _workers(records: list[str | None]) -> list[WorkerInfo]:
    """Those that can be read; what is no worker's record is nobody's."""
    read = []
    for text in filter(None, records):
        with contextlib.suppress(ValidationError):
            read.append(WorkerInfo.model_validate_json(text))
    return read


def read_pauses(stored: Mapping[str, str]) -> dict[str, Pause]:
    """Pauses by name; one whose record cannot be read counts all the same, since workers heed it."""
    pauses = {}
    for name, text in sorted(stored.items()):
        by, at = "?", 0.0
        with contextlib.suppress(ValueError, TypeError, KeyError):
            data = json.loads(text)
            by, at = str(data["by"])[:200], float(data["at"])
        pauses[name] = Pause(name=name, by=by, at=datetime.fromtimestamp(at / 1000, UTC))
    return pauses

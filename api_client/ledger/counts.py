"""How many of everything Redis holds, from the sizes of its indexes: as cheap with a million jobs as with one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from api_client.contract.job import JobState
from api_client.contract.waiting import WaitReason
from api_client.ledger.keys import Keys
from api_client.ledger.text_redis import TextRedis
from api_client.ledger.waiting import HELD


class Counts(BaseModel):
    """Numbers of one moment."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    """When, by the clock of Redis."""
    jobs: dict[tuple[JobState, str], int]
    """By state and template; every state for every template that a job ever had."""
    leases: int
    """Stages that run."""
    leases_overdue: int
    """Those whose lease has run out; a rescue is due."""
    delayed: int
    """Stages that wait out the delay before a retry."""
    held: dict[WaitReason, int]
    """Stages that wait for a reason that stands beside them."""
    callbacks: int
    """Callbacks still to be delivered."""


def read_counts(redis: TextRedis, keys: Keys, call: Callable[[Callable[[], Any]], Any]) -> Counts:
    """Read them, in two round trips.

    Args:
        redis: A connection pool.
        keys: Names of keys.
        call: Runs an action through short outages.
    """

    def first() -> list[Any]:
        pipe = redis.pipeline(transaction=False)
        pipe.smembers(keys.named("jobs:templates"))
        pipe.time()
        answers: list[Any] = pipe.execute()
        return answers

    templates, (seconds, micros) = call(first)
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    pairs = [(state, template) for state in JobState for template in sorted(templates)]

    def second() -> list[Any]:
        pipe = redis.pipeline(transaction=False)
        pipe.zcard(keys.named("leases"))
        pipe.zcount(keys.named("leases"), "-inf", now_ms)
        pipe.zcount(keys.named("wake"), f"({now_ms}", "+inf")
        pipe.zcard(keys.named("callbacks"))
        for reason in HELD:
            pipe.zcard(keys.held(reason))
        for state, template in pairs:
            pipe.scard(keys.template_index(state.value, template))
        answers: list[Any] = pipe.execute()
        return answers

    leases, overdue, delayed, callbacks, *rest = call(second)
    held, jobs = rest[: len(HELD)], rest[len(HELD) :]
    return Counts(
        at=datetime.fromtimestamp(now_ms / 1000, UTC),
        jobs=dict(zip(pairs, jobs, strict=True)),
        leases=leases,
        leases_overdue=overdue,
        delayed=delayed,
        held=dict(zip(HELD, held, strict=True)),
        callbacks=callbacks,
    )

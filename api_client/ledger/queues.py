"""How long queues are and how long the oldest of what waits there has waited; read in two round trips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from api_client.contract.fleet import QueueInfo
from api_client.ledger.keys import Keys
from api_client.ledger.messages import HOST_QUEUE_PREFIX, PRIORITIES, QUEUE_HEAVY, QUEUE_IO, host_queue, queue_keys
from api_client.ledger.text_redis import RedisPipe, TextRedis
from api_client.ledger.waiting import Fleet

T = TypeVar("T")


def read_queues(
    redis: TextRedis, keys: Keys, fleet: Fleet, call: Callable[[Callable[[], Any]], Any]
) -> list[QueueInfo]:
    """Read all queues: the two common ones, then one per living host.

    Age and number of waiting stages come from the index of stages that are due, not from the broker's lists: a message
    may be lost, doubled or already on its way to a worker, a due stage is due.

    Args:
        redis: A connection pool.
        keys: Names of keys.
        fleet: Workers that are alive, and pauses.
        call: Runs an action through short outages.
    """
    hosts, (seconds, micros) = call(lambda: _pipeline(redis, lambda pipe: _hosts_and_time(pipe, keys)))
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    names = [*dict.fromkeys([QUEUE_HEAVY, QUEUE_IO, *map(host_queue, hosts)])]
    answers = call(lambda: _pipeline(redis, lambda pipe: _ask_of_each(pipe, keys, names, now_ms)))
    step = len(PRIORITIES) + 2
    return [
        _queue(name, answers[at : at + step], fleet, now_ms)
        for name, at in zip(names, range(0, len(answers), step), strict=True)
    ]


def _pipeline(redis: TextRedis, fill: Callable[[RedisPipe], None]) -> list[Any]:
    pipe = redis.pipeline(transaction=False)
    fill(pipe)
    return pipe.execute()


def _hosts_and_time(pipe: RedisPipe, keys: Keys) -> None:
    pipe.zrange(keys.named("hosts"), 0, -1)
    pipe.time()


def _ask_of_each(pipe: RedisPipe, keys: Keys, names: Sequence[str], now_ms: int) -> None:
    for name in names:
        for key in queue_keys(keys, name):
            pipe.llen(key)
        pipe.zcount(keys.due(name), "-inf", now_ms)
        pipe.zrange(keys.due(name), 0, 0, withscores=True)


def _queue(name: str, answers: Sequence[Any], fleet: Fleet, now_ms: int) -> QueueInfo:
    *lengths, due, oldest = answers
    host = name.removeprefix(HOST_QUEUE_PREFIX) if name.startswith(HOST_QUEUE_PREFIX) else ""
    idle = fleet.why_idle(name) if due else None
    return QueueInfo(
        name=name,
        waiting=sum(lengths),
        workers=sum(name in worker.queues for worker in fleet.workers),
        due=due,
        oldest_s=max(0.0, (now_ms - float(oldest[0][1])) / 1000) if due else None,
        waiting_for=idle[0] if idle else None,
        paused=f"queue:{name}" in fleet.pauses or f"host:{host}" in fleet.pauses,
    )

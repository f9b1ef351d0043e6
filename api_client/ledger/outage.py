"""Riding out a Redis that is away: one loop, for clients and wherever a worker must not lose a result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_client.ledger.writes import refusal_of

T = TypeVar("T")

_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


def takes_no_writes(error: RedisError) -> bool:
    """Whether Redis refused because nothing can be written for now.

    Its memory or disk is full, too few replicas follow it, or it is one itself since a failover.
    """
    return refusal_of(error) is not None


def is_away(error: RedisError) -> bool:
    """Whether the server is down, restarting, loading, failing over, or takes no writes until someone makes room."""
    return isinstance(error, (RedisConnectionError, RedisTimeoutError)) or takes_no_writes(error)


def ride_out(action: Callable[[], T], outage_s: float, give_up: Callable[[], bool] = lambda: False) -> T:
    """Run ``action`` until Redis answers.

    Args:
        action: Something that is safe to repeat.
        outage_s: How long to go on trying; 0: not at all.
        give_up: Asked between tries; ``True`` ends the trying early.

    Raises:
        redis.exceptions.RedisError: the last failure, once the time is over.
    """
    deadline = time.monotonic() + outage_s
    pause_s = _PAUSE_S
    while True:
        try:
            return action()
        except RedisError as error:
            if not is_away(error) or time.monotonic() + pause_s > deadline or give_up():
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

"""Riding out a Redis that is away: one loop, used wherever a result must not be lost; and what loops say of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_client.address import takes_no_writes
from config.log_events import LogEvent

T = TypeVar("T")

_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


def is_away(error: RedisError) -> bool:
    """Whether the server is down, restarting, loading, failing over, or takes no writes until someone makes room."""
    return isinstance(error, (RedisConnectionError, RedisTimeoutError)) or takes_no_writes(error)


def note_trouble(log: structlog.stdlib.BoundLogger, error: RedisError) -> None:
    """Log what a loop that goes on met. An outage ends by itself; of what Redis refuses nobody would hear otherwise."""
    if is_away(error):
        log.debug(LogEvent.REDIS_UNREACHABLE, error=str(error))
    else:
        log.warning(LogEvent.REDIS_REFUSED, error=str(error))


def ride_out(action: Callable[[], T], outage_s: float, give_up: Callable[[], bool] = lambda: False) -> T:
    """Run ``action`` until Redis answers.

    Args:
        action: Something that is safe to repeat.
        outage_s: How long to go on trying.
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
            if not is_away(error) or time.monotonic() >= deadline or give_up():
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

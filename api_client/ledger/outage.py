"""Riding out a Redis that is away: one loop, for clients and wherever a worker must not lose a result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_client.ledger.writes import refusal_of

T = TypeVar("T")

_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_SLOW_TRIES = 1
"""How often a connected server that did not answer in time is asked again beyond the time that there is."""


def takes_no_writes(error: RedisError) -> bool:
    """Whether Redis refused because nothing can be written for now.

    Its memory or disk is full, too few replicas follow it, or it is one itself since a failover.
    """
    return refusal_of(error) is not None


def is_away(error: RedisError) -> bool:
    """Whether the server is down, restarting, loading, failing over, or takes no writes until someone makes room."""
    return isinstance(error, (RedisConnectionError, RedisTimeoutError)) or takes_no_writes(error)


def _read_timed_out(error: RedisError) -> bool:
    """Whether a connected server did not answer in time: it is there, and busy or on a busy machine."""
    return isinstance(error, RedisTimeoutError) and "reading" in str(error)


def may_not(error: RedisError) -> bool:
    """Whether the server's ACL forbids it. What a script may not do comes as an error without a class of its own."""
    return isinstance(error, NoPermissionError) or "ACL failure in script" in str(error) or "NOPERM" in str(error)


def ride_out(action: Callable[[], T], outage_s: float, give_up: Callable[[], bool] = lambda: False) -> T:
    """Run ``action`` until Redis answers.

    Args:
        action: Something that is safe to repeat.
        outage_s: How long to go on trying; 0: not at all, but once more where only the answer did not come in time.
        give_up: Asked between tries; ``True`` ends the trying early.

    Raises:
        redis.exceptions.RedisError: the last failure, once the time is over.
    """
    deadline = time.monotonic() + outage_s
    pause_s = _PAUSE_S
    slow_left = _SLOW_TRIES
    while True:
        try:
            return action()
        except RedisError as error:
            if not is_away(error) or give_up():
                raise
            late = time.monotonic() + pause_s > deadline
            if late and not (slow_left and _read_timed_out(error)):
                raise
            slow_left -= late
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

"""The loop of the worker's threads, and riding out a Redis that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain, count

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from structlog.testing import capture_logs

from api_client.ledger.outage import ride_out
from config.log_events import LogEvent
from worker.service.loop import Loop


def ticker(errors: list[Exception]) -> tuple[Callable[[], None], threading.Event]:
    """A tick that raises each error once; the event is set by the first round after them."""
    left, through = iter(errors), threading.Event()

    def tick() -> None:
        for error in left:
            raise error
        through.set()

    return tick, through


def test_no_error_ends_a_loop_and_each_is_logged_by_its_kind() -> None:
    refused = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    odd = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    tick, through = ticker([RedisConnectionError("gone"), refused, odd, MemoryError(), KeyError("x")])
    loop = Loop("under-test", tick, 0.001, LogEvent.COURIER_FAILED)
    with capture_logs() as logs:
        loop.start()
        assert through.wait(5)
        loop.stop()
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [LogEvent.COURIER_FAILED] * 3
    assert [entry["error"] for entry in logs if entry["event"] == LogEvent.REDIS_REFUSED] == [str(refused)]
    assert "under-test" not in [thread.name for thread in threading.enumerate()]


def test_a_stop_does_not_wait_for_the_interval_and_one_before_the_start_harms_nothing() -> None:
    Loop("never-started", lambda: None, 3600, LogEvent.REAPER_FAILED).stop()
    loop = Loop("slow", lambda: None, 3600, LogEvent.REAPER_FAILED)
    loop.start()
    started = time.monotonic()
    loop.stop()
    assert time.monotonic() - started < 5
    assert loop.ending


def test_a_round_that_failed_is_followed_by_a_rest() -> None:
    at: list[float] = []

    def tick() -> None:
        at.append(time.monotonic())
        raise ValueError("a mistake")

    loop = Loop("resting", tick, 0, LogEvent.QUESTION_FAILED, rest_s=0.1)
    with capture_logs():
        loop.start()
        while len(at) < 3:
            time.sleep(0.01)
        loop.stop()
    assert at[2] - at[0] >= 0.2


def test_a_tick_may_end_its_own_loop() -> None:
    def tick() -> None:
        loop.end()

    loop = Loop("once", tick, 0, LogEvent.QUESTION_FAILED)
    loop.start()
    loop.stop()
    assert "once" not in [thread.name for thread in threading.enumerate()]


def failing(*errors: RedisError) -> tuple[Callable[[], str], list[int]]:
    answers: Iterator[RedisError | str] = chain(errors, ["answer"])
    calls = count()
    made: list[int] = []

    def action() -> str:
        made.append(next(calls))
        answer = next(answers)
        if isinstance(answer, RedisError):
            raise answer
        return answer

    return action, made


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), OutOfMemoryError("full"), ResponseError("NOREPLICAS")])
def test_an_outage_is_ridden_out(error: RedisError) -> None:
    action, made = failing(error, error)
    assert ride_out(action, 30) == "answer"
    assert len(made) == 3


@pytest.mark.parametrize(
    ("error", "outage_s", "gives_up"),
    [
        (ResponseError("WRONGTYPE"), 30, False),
        (RedisError("x"), 30, False),
        (RedisConnectionError("gone"), 0, False),
        (RedisConnectionError("gone"), 30, True),
    ],
)
def test_what_waiting_does_not_mend_and_who_cannot_wait_is_told_at_once(
    error: RedisError, outage_s: float, gives_up: bool
) -> None:
    action, made = failing(error)
    with pytest.raises(type(error)):
        ride_out(action, outage_s, lambda: gives_up)
    assert len(made) == 1

"""Carries a running stage's log and progress to Redis, in a thread of its own: a slow Redis holds nothing up.

Progress is thinned: the stage's record is written at most every half second, and an entry goes into the log only when a
further hundredth is done, so that progress never crowds the log out. While Redis is away entries wait in memory, the
oldest giving way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from redis.exceptions import RedisError

from api_client.contract.events import Event, EventKind
from api_client.contract.job import Progress
from api_client.ledger.outage import is_away, ride_out
from config.log_events import LogEvent
from worker.service.loop import Loop
from worker.service.state.transitions import Lease, Transitions

_PENDING_MAX = 2000
_BATCH = 200
_PROGRESS_EVERY_S = 0.5
_LOG_STEP = 0.01
_RATE_WINDOW_S = 20.0
_LEVELS: dict[str, Literal["debug", "info", "warning", "error"]] = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
}


class RateMeter:
    """Rate of a count over a sliding window. The clock is given with each sample, in seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def rate(self, now_s: float, done: float) -> float | None:
        """Units a second; ``None`` before it can be known. A count that goes back starts over."""
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now_s, done))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()
        first_s, first = self._samples[0]
        return (done - first) / (now_s - first_s) if now_s > first_s and done > first else None


class Relay:
    """Log and progress of one attempt."""

    def __init__(self, transitions: Transitions, lease: Lease, on_lost: Callable[[], None]) -> None:
        self._transitions = transitions
        self._lease = lease
        self._on_lost = on_lost
        self._events: deque[tuple[float, Event]] = deque(maxlen=_PENDING_MAX)
        self._progress: Progress | None = None
        self._publishing: str | None = None
        self._meter = RateMeter()
        self._logged_fraction = -1.0
        self._written_at = 0.0
        self._wake = threading.Event()
        self._lost = False
        # A round waits for something to write by itself, but not where it fails.
        self._loop = Loop(
            f"relay-{lease.task_id}", self._write_next, 0.0, LogEvent.RELAY_FAILED, rest_s=_PROGRESS_EVERY_S
        )
        self._loop.start()

    def log(self, message: str, level: str = "info", **fields: Any) -> None:
        """Add an entry of the stage's own kind."""
        self._add(self._lease.stage.spec.log_kind, message, level, fields)

    def progress(self, done: float, total: float, unit: str, detail: str = "") -> None:
        """Note how far the stage is."""
        rate = self._meter.rate(time.monotonic(), done)
        progress = Progress(done=done, total=total, unit=unit, rate=rate, detail=detail)
        self._progress = progress
        if progress.fraction >= self._logged_fraction + _LOG_STEP or progress.fraction < self._logged_fraction:
            self._logged_fraction = progress.fraction
            fields = {"done": done, "total": total, "unit": unit, "rate": rate}
            self._add(EventKind.PROGRESS, detail or f"{progress.fraction:.0%}", "info", fields)
        self._wake.set()

    def waits_to_publish(self, directory: str) -> None:
        """Note that another job publishes into a directory; empty: that it is free."""
        self._publishing = directory
        self._wake.set()

    def _add(self, kind: EventKind, message: str, level: str, fields: dict[str, Any]) -> None:
        event = Event(
            time=datetime.now(UTC),
            job_id=self._lease.job_id,
            stage=self._lease.stage,
            attempt=self._lease.attempt,
            level=_LEVELS.get(level, "info"),
            kind=kind,
            message=message,
            fields=fields,
        )
        self._events.append((time.monotonic(), event))
        self._wake.set()

    def _write_next(self) -> None:
        self._wake.wait(_PROGRESS_EVERY_S)
        self._wake.clear()
        try:
            self._flush()
        except RedisError as error:
            if not is_away(error):
                self._loop.end()  # A refused write (no right): the result will meet it too.
            raise

    def _flush(self) -> None:
        while not self._lost:
            batch = [self._events[i] for i in range(min(_BATCH, len(self._events)))]
            progress = self._progress if self._progress_due() else None
            publishing = self._publishing
            if not batch and progress is None and publishing is None:
                return
            now = time.monotonic()
            if not self._transitions.relay(
                self._lease, [(now - at, event) for at, event in batch], progress, publishing
            ):
                self._lost = True
                self._on_lost()
                return
            if self._publishing is publishing:
                self._publishing = None
            if progress is not None:
                self._written_at = time.monotonic()
                if self._progress is progress:
                    self._progress = None
            # The deque may have dropped some of the batch from its left end meanwhile; never drop newer ones for it.
            for entry in batch:
                if self._events and self._events[0] is entry:
                    self._events.popleft()

    def _progress_due(self) -> bool:
        return self._loop.ending or time.monotonic() - self._written_at >= _PROGRESS_EVERY_S

    def close(self, outage_s: float, give_up: Callable[[], bool]) -> None:
        """Write what is left, waiting for Redis up to ``outage_s`` or until ``give_up`` says so."""
        self._loop.end()
        self._wake.set()
        self._loop.stop(None)
        ride_out(self._flush, outage_s, give_up)

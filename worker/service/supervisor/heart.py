"""Heartbeats: one thread that renews every lease of this worker and says that the worker is alive.

Nothing else runs in it, so no slow stage, log or disk can delay a renewal. A renewal also brings back what the attempt
must know: the job was cancelled, or another attempt holds the stage now.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from config.log_events import LogEvent
from worker.service.loop import Loop
from worker.service.metrics.observer import Observer
from worker.service.state.transitions import Lease, LeaseAnswer, Transitions

LONGEST_PAUSE_S = 1.0


class Holding:
    """A lease while its attempt runs: what the heart and the others tell the loop beside the stage."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.cancelled = threading.Event()
        self.lost = threading.Event()
        self.answered_at = time.monotonic()
        """When a renewal last succeeded, monotonic seconds."""

    def keep_going(self) -> bool:
        """Whether work for this attempt still makes sense."""
        return not (self.lost.is_set() or self.cancelled.is_set())

    def take(self, answer: LeaseAnswer) -> bool:
        """Note the answer to a renewal; whether the lease still holds."""
        self.answered_at = time.monotonic()
        if answer == "lost":
            self.lost.set()
        elif answer == "cancel":
            self.cancelled.set()
        return answer != "lost"


class Heart:
    """The thread.

    Args:
        transitions: For renewals, on a connection of their own with a short time-out.
        heartbeat_s: How often leases are renewed and ``beat`` is called; renewals come at least every second, so that a
            cancel is seen in time.
        outage_s: How long attempts go on while Redis does not answer.
        beat: Writes the worker's own record.
        observer: Is told how late renewals come.
    """

    def __init__(
        self,
        transitions: Transitions,
        heartbeat_s: float,
        outage_s: float,
        beat: Callable[[], None],
        *,
        observer: Observer,
    ) -> None:
        self._transitions = transitions
        self._heartbeat_s = heartbeat_s
        self._outage_s = outage_s
        self._beat = beat
        self._observer = observer
        self._pause_s = min(heartbeat_s, LONGEST_PAUSE_S)
        self._holdings: dict[str, Holding] = {}
        self._lock = threading.Lock()
        self._beat_at = float("-inf")
        # A heart that stops loses every lease of this worker, one after the other.
        self._loop = Loop("heart", self._tick, self._pause_s, LogEvent.HEART_FAILED)

    def start(self) -> None:
        """Start beating."""
        self._loop.start()

    def stop(self) -> None:
        """Stop beating."""
        self._loop.stop()

    def hold(self, lease: Lease) -> Holding:
        """Renew this lease from now on."""
        holding = Holding(lease)
        with self._lock:
            self._holdings[lease.token] = holding
        return holding

    def let_go(self, holding: Holding) -> None:
        """Renew it no longer."""
        with self._lock:
            self._holdings.pop(holding.lease.token, None)

    @property
    def running(self) -> tuple[str, ...]:
        """``job_id:stage:attempt`` of what runs here."""
        with self._lock:
            return tuple(holding.lease.task_id for holding in self._holdings.values())

    def _tick(self) -> None:
        with self._lock:
            holdings = list(self._holdings.values())
        for holding in holdings:
            before = holding.answered_at
            try:
                holding.take(self._transitions.renew(holding.lease))
                self._observer.renewed(holding.answered_at - before - self._pause_s)
            except RedisError:
                self._observer.not_renewed()
                if time.monotonic() - holding.answered_at > self._outage_s:
                    holding.lost.set()
        if time.monotonic() - self._beat_at >= self._heartbeat_s:
            self._beat()
            self._beat_at = time.monotonic()

"""Bounds on what one caller may take: requests a minute, event streams open at once. In memory, for this process."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from api_client.contract.errors import ErrorCode, PackagingError

_CALLERS_KEPT = 10_000


class RateLimit:
    """A token bucket for each caller: a minute's worth may come at once, then as fast as it fills."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._size = float(per_minute)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one request.

        Raises:
            PackagingError: ``rate_limited``, with ``retry_after_s``.
        """
        level, now = self._level(caller)
        if level < 1:
            wait_s = (1 - level) / self._rate
            raise PackagingError(
                ErrorCode.RATE_LIMITED,
                f"more than {self._size:g} in a minute from {caller}",
                fields={"caller": caller, "per_minute": int(self._size), "retry_after_s": round(wait_s, 1)},
            )
        self._buckets[caller] = (level - 1, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _CALLERS_KEPT:
            self._buckets.popitem(last=False)

    def _level(self, caller: str) -> tuple[float, float]:
        now = self._clock()
        level, then = self._buckets.get(caller, (self._size, now))
        return min(self._size, level + (now - then) * self._rate), now


class StreamLimit:
    """Counts open event streams, in all and of each caller. Used from the event loop only."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Streams open now."""
        return self._open.total()

    @contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """Hold one stream open.

        Raises:
            PackagingError: ``rate_limited``.
        """
        if self.open >= self._most or self._open[caller] >= self._most_each:
            raise PackagingError(
                ErrorCode.RATE_LIMITED,
                f"{self._open[caller]} event streams of {caller} are open, {self.open} in all",
                remedy="Close a stream, or read /events as pages.",
                fields={"caller": caller, "open": self._open[caller], "open_in_all": self.open, "retry_after_s": 5},
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            self._open += Counter()  # drops callers with none open

"""Draining: what SIGTERM means to the stages of this worker."""

from __future__ import annotations

import threading
import time


class Drain:
    """Whether this worker is to end, and how patiently. Set from signal handlers, read from every loop."""

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._started_at: float | None = None
        self._hasty = threading.Event()

    def request(self) -> None:
        """First call: finish at a safe point within the bound. Second call: now."""
        if self._started_at is not None:
            self._hasty.set()
        else:
            self._started_at = time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether no new stage may start and running ones are to stop."""
        return self._started_at is not None

    @property
    def impatient(self) -> bool:
        """Whether running stages are to be ended without waiting any longer."""
        if self._started_at is None:
            return False
        return self._hasty.is_set() or time.monotonic() - self._started_at > self._bound_s

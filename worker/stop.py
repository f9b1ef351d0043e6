"""How long work is asked to stop: a callable that says so, and the exception that answers it."""

from __future__ import annotations

from collections.abc import Callable

ShouldStop = Callable[[], bool]


class StopRequested(Exception):
    """The work was asked to stop and has reached a safe point; partial files and journals stay for the next attempt."""

"""Waiting for what another thread or process does: for an event with a bound, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
BOUND_S = 25.0


def eventually(look: Callable[[], T], what: str, bound_s: float = BOUND_S) -> T:
    """The first true answer of ``look``; an assertion fails when none comes in time."""
    deadline = time.monotonic() + bound_s
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not in {bound_s:g} s: {what}"
        time.sleep(0.02)

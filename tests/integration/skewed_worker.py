"""A worker whose wall clock leaps by an hour, ahead and back, several times a second. Leases must not depend on it."""

from __future__ import annotations

import sys
import time

_LEAPS_S = (0, 3600, -3600)
_real = time.time


def leaping() -> float:
    """The time, or what it was or will be."""
    return _real() + _LEAPS_S[int(time.monotonic() * 5) % len(_LEAPS_S)]


if __name__ == "__main__":
    time.time = leaping  # Before anything else takes its own reference.
    from worker.__main__ import main

    sys.exit(main())

"""Times as people write them: a span that reaches back from now, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([smhdw])")


def read_since(text: str, now: datetime | None = None) -> datetime:
    """A time with its zone, from a span before now (``30m``, ``24h``, ``7d``) or an ISO date.

    Args:
        text: What was written.
        now: From when a span reaches back; the present by default.

    Raises:
        ValueError: It is neither, or lies before the first year.
    """
    given = text.strip()
    span = _SPAN.fullmatch(given.lower())
    try:
        if span is None:
            when = datetime.fromisoformat(given)
            return when.astimezone() if when.tzinfo is None else when
        return (now or datetime.now(UTC)) - timedelta(seconds=float(span[1]) * _UNIT_SECONDS[span[2]])
    except OverflowError:
        raise ValueError(f"{given!r} reaches back too far") from None

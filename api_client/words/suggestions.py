"""What someone may have meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name most like one that is not; ``None`` where none is like it at all.

    Args:
        name: What was written.
        known: The names there are.
        likeness: From how much likeness on, 0 to 1, one counts.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), None)


def did_you_mean(suggestion: str | None, *, quoted: bool = False) -> str:
    """The end of a message: ``; did you mean Q4_K_M?``, and nothing where there is no suggestion."""
    if suggestion is None:
        return ""
    return f"; did you mean {suggestion!r}?" if quoted else f"; did you mean {suggestion}?"

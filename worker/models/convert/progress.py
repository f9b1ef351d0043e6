"""How the long functions of this package say how far they are."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int, str], None]
"""``(done_bytes, total_bytes, tensor name)``; called on the calling thread, in file order."""


def no_report(done_bytes: int, total_bytes: int, tensor: str) -> None:
    """Say nothing."""

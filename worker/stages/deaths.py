"""How often the process of a stage died in the middle of something, counted where the next attempt sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.storage.held import hold, plain_opener


@contextmanager
def deaths_before(mark: Path) -> Iterator[int]:
    """Do something that may end the process, memory being short, say.

    Args:
        mark: A file of its own in the job's scratch; one byte for each attempt that began and was never left.

    Yields:
        How many attempts before this one died in it. Whatever ends this one in an orderly way ends the count.
    """
    deaths = mark.stat().st_size if mark.is_file() else 0
    with hold(mark.parent) as held, open(held.here / mark.name, "ab", opener=plain_opener) as file:
        file.write(b".")
    try:
        yield deaths
    finally:
        mark.unlink(missing_ok=True)

"""Memory and file sizes as people write them: ``6GB``, ``5.5GiB``, ``500M``."""

from __future__ import annotations

import re
from decimal import Decimal

_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(m|g|t)(i?)b?", re.ASCII)
_POWERS = {"m": 2, "g": 3, "t": 4}


def memory_bytes(text: str) -> int | None:
    """Bytes of a size with M, G or T, decimal or, with an ``i``, binary; rounded down. ``None`` for anything else."""
    found = _read(text)
    return None if found is None else int(found[0] * (1024 if found[2] else 1000) ** _POWERS[found[1]])


def size_in_its_one_form(text: str) -> str | None:
    """The same size as it is written everywhere, e.g. ``5.5GiB`` of ``5.50gib``; ``None`` as :func:`memory_bytes`."""
    found = _read(text)
    return None if found is None else f"{found[0].normalize():f}{found[1].upper()}{found[2]}B"


def _read(text: str) -> tuple[Decimal, str, str] | None:
    """Number, power and ``i`` of a size above zero."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or Decimal(found[1]) == 0:
        return None
    return Decimal(found[1]), found[2], found[3]

"""Memory and file sizes as people write them: ``6GB``, ``5.5GiB``, ``500M``."""

from __future__ import annotations

import re
from decimal import Decimal

_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(m|g|t)(i?)b?", re.ASCII)
_POWERS = {"m": 2, "g": 3, "t": 4}


def memory_bytes(text: str) -> int | None:
    """Bytes of a size with M, G or T, decimal or, with an ``i``, binary; rounded down. ``None`` for anything else."""
    size = _read(text)
    return None if size is None else int(size[0] * (1024 if size[2] else 1000) ** _POWERS[size[1]])


def size_in_its_one_form(text: str) -> str | None:
    """The same size as it is written everywhere, e.g. ``5.5GiB`` of ``5.50gib``; ``None`` as :func:`memory_bytes`."""
    size = _read(text)
    return None if size is None else f"{size[0].normalize():f}{size[1].upper()}{size[2]}B"


def _read(text: str) -> tuple[Decimal, str, str] | None:
    """Number, power and ``i`` of a size above zero."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or Decimal(match[1]) == 0:
        return None
    return Decimal(match[1]), match[2], match[3]

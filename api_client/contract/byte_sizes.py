"""Memory and file sizes as people write them: ``6GB``, ``5.5GiB``, ``500M``."""

from __future__ import annotations

import re
from decimal import Decimal

_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(m|g|t)(i?)b?", re.ASCII)
_POWERS = {"m": 2, "g": 3, "t": 4}


def memory_bytes(text: str) -> int | None:
    """Bytes of a size with M, G or T, decimal or, with an ``i``, binary; rounded down. ``None`` for anything else."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or Decimal(found[1]) == 0:
        return None
    return int(Decimal(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]])

"""Ids of jobs. They become parts of Redis keys, directory names and addresses, so each is checked where it comes in."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime

_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
_JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-z]{6}")


def new_job_id(now: datetime | None = None) -> str:
    """A new id, ``YYYYMMDD-HHMMSS-xxxxxx`` (UTC): ids sort by time, and no two are likely to meet."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{''.join(secrets.choice(_LETTERS) for _ in range(6))}"


def is_job_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _JOB_ID.fullmatch(text) is not None

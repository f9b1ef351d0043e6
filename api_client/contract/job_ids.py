"""Ids of jobs. They become parts of Redis keys, directory names and addresses, so each is checked where it comes in."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from api_client.contract.errors import ErrorCode, PackagingError

_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
_LAST = re.compile(r"last(?:~(\d{1,9}))?")
_NAMED = 5
_JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-z]{6}")


def new_job_id(now: datetime | None = None) -> str:
    """A new id, ``YYYYMMDD-HHMMSS-xxxxxx`` (UTC): ids sort by time, and no two are likely to meet."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{''.join(secrets.choice(_LETTERS) for _ in range(6))}"


def is_job_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _JOB_ID.fullmatch(text) is not None


def find_id(text: str, newest_first: Callable[[], Iterable[str]]) -> str:
    """The id that a text means: an id, a part that only one has, ``last``, or ``last~1`` for the one before.

    Args:
        text: What was written.
        newest_first: All ids; called only where the text is none itself.

    Raises:
        PackagingError: ``job_not_found``; ``request_invalid`` where several ids have the part, naming some.
    """
    if is_job_id(text):
        return text
    last = _LAST.fullmatch(text)
    if last is not None:
        matches = [*itertools.islice(newest_first(), int(last[1] or 0), int(last[1] or 0) + 1)]
    else:
        matches = [*itertools.islice((known for known in newest_first() if text and text in known), _NAMED + 1)]
    if not matches:
        raise PackagingError(ErrorCode.JOB_NOT_FOUND, f"no job {text!r}", fields={"job_id": text})
    if len(matches) > 1:
        named = ", ".join(matches[:_NAMED]) + (", ..." if len(matches) > _NAMED else "")
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"{text!r} is a part of several ids: {named}",
            remedy="Write more of the id, or last.",
            fields={"field": "job_id", "matches": matches[:_NAMED]},
        )
    return matches[0]

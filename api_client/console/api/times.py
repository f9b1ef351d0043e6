"""Times in requests: ISO 8601 as text, nothing else. Numbers could mean seconds or milliseconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_ISO = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?([Zz]|[+-]\d{2}:?\d{2})?")


def _only_text(value: Any) -> Any:
    if not isinstance(value, str) or not _ISO.fullmatch(value):
        raise ValueError("is no time such as 2026-01-31T12:00:00Z")
    return value


def _with_zone(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


Time = Annotated[datetime, BeforeValidator(_only_text), AfterValidator(_with_zone)]
"""A time with its zone; without one it is UTC."""

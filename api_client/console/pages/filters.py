"""What the jobs page is asked to show: state, code, labels, search, time, order; an address is a view to keep.

What an address asks for that does not exist (any more) is left out and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from api_client.contract.error_codes import ErrorCode
from api_client.contract.field_values import read_pair
from api_client.contract.job import JobState
from api_client.words.spans import read_since

SPANS: Final = (("1h", "last_hour"), ("24h", "last_day"), ("7d", "last_week"))
"""Spans to choose from, and the key of each one's text."""
ORDERS: Final = ("active", "newest", "oldest", "ended")
"""How jobs may be sorted: what runs and waits first, by submission, by their end."""
_MOST_CHARACTERS: Final = 200


@dataclass(frozen=True)
class JobFilter:
    """One address of the jobs page, taken apart.

    Attributes:
        state: Chosen state.
        code: Chosen error code; only failed jobs have one.
        labels: Chosen labels.
        since: Start of the time chosen.
        search: A part of the id, a label, a path or an error.
        order: One of :data:`ORDERS`.
        label_text: The label field as it was typed.
        since_text: The time as it was chosen.
        cursor: Id of the last job of the page before.
        bad_label: The first part of the label field that is not ``key=value``.
        unknown: What the address asks for that does not exist, as ``state=lost``.
    """

    state: JobState | None = None
    code: ErrorCode | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    search: str = ""
    order: str = ORDERS[0]
    label_text: str = ""
    since_text: str = ""
    cursor: str | None = None
    bad_label: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether anything is filtered out."""
        return bool(self.state or self.code or self.label_text or self.since_text or self.search)

    def values(self, cursor: str | None = None) -> dict[str, str]:
        """The fields of this filter that say something, by the names that the address has for them."""
        values = {
            "state": self.state.value if self.state else "",
            "code": self.code.value if self.code else "",
            "search": self.search,
            "label": self.label_text,
            "since": self.since_text,
            "order": self.order if self.order != ORDERS[0] else "",
            "cursor": cursor or "",
        }
        return {key: value for key, value in values.items() if value}

    def address(self, cursor: str | None = None) -> str:
        """Address of this filter, after a cursor."""
        query = urlencode(self.values(cursor))
        return f"/jobs?{query}" if query else "/jobs"

    def of_state(self, state: JobState | None) -> str:
        """Address of this filter with another state; that of an error code goes with it."""
        return replace(self, state=state, code=None).address()

    def of_code(self, code: ErrorCode | None) -> str:
        """Address of this filter with another error code, of failed jobs."""
        return replace(self, state=JobState.FAILED if code else self.state, code=code).address()


def read_filter(query: Mapping[str, str]) -> JobFilter:
    """The filter in an address. What does not exist is as good as not asked for, and told; so is a wrong label."""
    labels, bad = read_labels(query.get("label", "").split(","))
    since_text = query.get("since", "").strip()
    since = _since(since_text)
    asked = {name: query.get(name, "").strip() for name in ("state", "code", "order")}
    known = {
        "state": asked["state"] in list(JobState),
        "code": asked["code"] in list(ErrorCode),
        "order": asked["order"] in ORDERS,
        "since": since is not None,
    }
    given = asked | {"since": since_text}
    return JobFilter(
        state=JobState(asked["state"]) if known["state"] else None,
        code=ErrorCode(asked["code"]) if known["code"] else None,
        labels=labels,
        since=since,
        search=query.get("search", "").strip()[:_MOST_CHARACTERS],
        order=asked["order"] if known["order"] else ORDERS[0],
        label_text=query.get("label", "").strip(),
        since_text=since_text if since else "",
        cursor=query.get("cursor") or None,
        bad_label=bad,
        unknown=tuple(
            f"{name}={value[:_MOST_CHARACTERS]}" for name, value in given.items() if value and not known[name]
        ),
    )


def read_labels(parts: list[str]) -> tuple[dict[str, str], str | None]:
    """Labels from ``key=value`` parts, and the first part that is none."""
    labels: dict[str, str] = {}
    for part in (part.strip() for part in parts if part.strip()):
        try:
            key, value = read_pair(part)
        except ValueError:
            return labels, part
        labels[key] = value
    return labels, None


def _since(text: str) -> datetime | None:
    try:
        return read_since(text) if text else None
    except ValueError:
        return None

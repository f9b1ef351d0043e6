"""What the jobs page is asked to show: state, labels, time; read from the address, wrong values told at the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from api_client.contract.field_values import read_pair
from api_client.contract.job import JobState
from api_client.words.spans import read_since

SPANS: Final = (("1h", "last_hour"), ("24h", "last_day"), ("7d", "last_week"))
"""Spans to choose from, and the key of each one's text."""


@dataclass(frozen=True)
class JobFilter:
    """One address of the jobs page, taken apart.

    Attributes:
        state: Chosen state.
        labels: Chosen labels.
        since: Start of the time chosen.
        label_text: The label field as it was typed.
        since_text: The time as it was chosen.
        cursor: Id of the last job of the page before.
        bad_label: The first part of the label field that is not ``key=value``.
    """

    state: JobState | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    label_text: str = ""
    since_text: str = ""
    cursor: str | None = None
    bad_label: str | None = None

    @property
    def active(self) -> bool:
        """Whether anything is filtered out."""
        return bool(self.state or self.label_text or self.since_text)

    def address(self, cursor: str | None = None) -> str:
        """Address of this filter, after a cursor."""
        values = {
            "state": self.state.value if self.state else "",
            "label": self.label_text,
            "since": self.since_text,
            "cursor": cursor or "",
        }
        query = urlencode({key: value for key, value in values.items() if value})
        return f"/jobs?{query}" if query else "/jobs"


def read_filter(query: Mapping[str, str]) -> JobFilter:
    """The filter in an address. An unknown state or time is as good as none; a wrong label is told."""
    labels, bad = read_labels(query.get("label", "").split(","))
    since_text = query.get("since", "").strip()
    since = _since(since_text)
    state = query.get("state", "")
    return JobFilter(
        state=JobState(state) if state in list(JobState) else None,
        labels=labels,
        since=since,
        label_text=query.get("label", "").strip(),
        since_text=since_text if since else "",
        cursor=query.get("cursor") or None,
        bad_label=bad,
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

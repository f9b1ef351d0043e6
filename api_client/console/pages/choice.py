"""Which jobs a filter takes, in which order, and how many of each state and code there are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api_client.console.pages.filters import JobFilter
from api_client.contract.job import JobState
from api_client.ledger.summaries import JobSummary

_RANK: Final = {JobState.RUNNING: 0, JobState.QUEUED: 1}
_KEYS: Final[Mapping[str, Callable[[JobSummary], Any]]] = {
    "active": lambda summary: _RANK.get(summary.state, 2),
    "newest": lambda _: 0,
    "oldest": lambda summary: (summary.created_ms, summary.id),
    "ended": lambda summary: -(summary.ended_ms or 0),
}
"""What jobs are sorted by; they come newest first, and stay so where this says the same of two."""


@dataclass(frozen=True)
class ChosenJobs:
    """What a filter takes.

    Attributes:
        ids: Jobs that it takes, in its order.
        states: Jobs by state, whatever state and code the filter names.
        codes: Failed jobs by error code, whatever code the filter names; the most frequent first.
    """

    ids: Sequence[str]
    states: Mapping[JobState, int]
    codes: Mapping[str, int]

    def page(self, after: str | None, length: int) -> tuple[Sequence[str], bool]:
        """Ids after one of them (from the beginning where it is not among them), and whether more follow."""
        start = 0
        if after is not None and after in self.ids:
            start = list(self.ids).index(after) + 1
        return self.ids[start : start + length], len(self.ids) > start + length


def select(summaries: Sequence[JobSummary], asked: JobFilter) -> ChosenJobs:
    """Apply a filter.

    Args:
        summaries: All jobs, newest first.
        asked: The filter; with a wrong label it takes nothing.
    """
    if asked.bad_label is not None:
        return ChosenJobs((), {}, {})
    oldest_ms = asked.since.timestamp() * 1000 if asked.since else 0
    wanted, labels = asked.search.casefold(), asked.labels.items()
    around = [
        summary
        for summary in summaries
        if summary.created_ms >= oldest_ms
        and (not wanted or wanted in summary.searched)
        and (not labels or labels <= summary.labels.items())
    ]
    codes = Counter(summary.code for summary in around if summary.code)
    taken = [
        summary
        for summary in around
        if (asked.state is None or summary.state is asked.state)
        and (asked.code is None or summary.code == asked.code.value)
    ]
    return ChosenJobs(
        ids=[summary.id for summary in sorted(taken, key=_KEYS[asked.order])],
        states=Counter(summary.state for summary in around),
        codes=dict(codes.most_common()),
    )

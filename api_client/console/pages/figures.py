"""Figures of the service over the last day and week, from what Redis keeps of its jobs; no Prometheus needed. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from api_client.contract.fleet import WorkerInfo
from api_client.contract.job import AttemptOutcome, Job, JobState
from api_client.contract.stages import StageName
from api_client.ledger.summaries import JobSummary
from api_client.words.formatting import format_time

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)
QUANTILES: Final = (0.5, 0.9, 1.0)
WIDTH, HEIGHT, LEFT, TOP = 640, 150, 34, 8
_BASE: Final = 126
_GAP: Final = 2.0
_SHOWN: Final = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class TimeSlot:
    """A part of the time and how many jobs ended in it.

    Attributes:
        start: Its beginning.
        said: Its beginning as text.
        counts: Jobs by the state in which they ended.
    """

    start: datetime
    said: str
    counts: Mapping[JobState, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class SlotBar:
    """One part of a stacked bar, in the coordinates of the picture."""

    state: str
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Throughput:
    """Jobs that ended, by time: the same as bars and as rows."""

    slots: Sequence[TimeSlot]
    bars: Sequence[SlotBar]
    most: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(slot.total for slot in self.slots)


@dataclass(frozen=True)
class Quantiles:
    """How a figure is spread: its count, median, 90th percentile and largest."""

    count: int
    median: float
    upper: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles | None:
        """Of some values; ``None`` of none. A quantile is a value that was seen, the next higher one."""
        ordered = sorted(values)
        if not ordered:
            return None
        median, upper, most = (ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in QUANTILES)
        return cls(len(ordered), median, upper, most)


@dataclass(frozen=True)
class HostLine:
    """A host and what its workers say of it: slots in use, load for each core, room on the disk."""

    name: str
    workers: int
    used: int
    slots: int
    load: float | None
    disk_free_bytes: int | None
    disk_total_bytes: int | None


def throughput(summaries: Iterable[JobSummary], step: timedelta, count: int, now: datetime) -> Throughput:
    """Jobs that ended in each of the last ``count`` steps, the present one included."""
    step_s = step.total_seconds()
    last = math.floor(now.timestamp() / step_s)
    counts: list[Counter[JobState]] = [Counter() for _ in range(count)]
    for summary in summaries:
        if summary.ended_ms is not None and summary.state in _SHOWN:
            at = count - 1 - (last - math.floor(summary.ended_ms / 1000 / step_s))
            if 0 <= at < count:
                counts[at][summary.state] += 1
    starts = [datetime.fromtimestamp((last - count + 1 + number) * step_s, UTC) for number in range(count)]
    slots = [TimeSlot(start, format_time(start, now), states) for start, states in zip(starts, counts, strict=True)]
    most = max(max((slot.total for slot in slots), default=0), 1)
    return Throughput(slots, _bars(slots, most), most)


def _bars(slots: Sequence[TimeSlot], most: int) -> list[SlotBar]:
    slot_width = (WIDTH - LEFT) / len(slots)
    bars = []
    for number, slot in enumerate(slots):
        y = float(_BASE)
        for state in _SHOWN:
            height = slot.counts[state] / most * (_BASE - TOP)
            if height > 0:
                y -= height
                x = LEFT + number * slot_width
                title = f"{slot.said}: {slot.counts[state]}"
                bars.append(SlotBar(state.value, x, y, slot_width - _GAP, height, title))
    return bars


def failures(summaries: Iterable[JobSummary], now: datetime) -> list[tuple[str, int, int]]:
    """Error codes with the failed jobs of the last day and week that have them; the most frequent first."""
    day, week = Counter[str](), Counter[str]()
    for summary in summaries:
        if summary.code and summary.ended_ms is not None:
            age_s = now.timestamp() - summary.ended_ms / 1000
            week[summary.code] += age_s <= WEEK.total_seconds()
            day[summary.code] += age_s <= DAY.total_seconds()
    return [(code, day[code], count) for code, count in week.most_common() if count]


def queue_wait(summaries: Iterable[JobSummary], span: timedelta, now: datetime) -> Quantiles | None:
    """Seconds from submitting to the first stage's start, of jobs that began in a span before now."""
    oldest_ms = (now - span).timestamp() * 1000
    return Quantiles.of(
        max(0, summary.started_ms - summary.created_ms) / 1000
        for summary in summaries
        if summary.started_ms is not None and summary.started_ms >= oldest_ms
    )


def stage_times(jobs: Iterable[Job]) -> list[tuple[StageName, Quantiles]]:
    """Seconds of the attempts that ended well, by stage, in the order of the stages."""
    seconds: dict[StageName, list[float]] = {}
    for job in jobs:
        for stage in job.stages:
            for attempt in stage.attempts:
                if attempt.outcome is AttemptOutcome.SUCCEEDED and attempt.finished_at is not None:
                    took = (attempt.finished_at - attempt.started_at).total_seconds()
                    seconds.setdefault(stage.name, []).append(took)
    spread = [(name, Quantiles.of(seconds.get(name, ()))) for name in StageName]
    return [(name, quantiles) for name, quantiles in spread if quantiles is not None]


def hosts(workers: Iterable[WorkerInfo]) -> list[HostLine]:
    """A line a host; its load and disk are those that the worker heard of last says."""
    by_host: dict[str, list[WorkerInfo]] = {}
    for worker in sorted(workers, key=lambda worker: worker.last_heartbeat_at):
        by_host.setdefault(worker.host, []).append(worker)
    return [
        HostLine(
            name=name,
            workers=len(of_host),
            used=sum(len(worker.running) for worker in of_host),
            slots=sum(worker.slots for worker in of_host),
            load=of_host[-1].load,
            disk_free_bytes=of_host[-1].disk_free_bytes,
            disk_total_bytes=of_host[-1].disk_total_bytes,
        )
        for name, of_host in sorted(by_host.items())
    ]

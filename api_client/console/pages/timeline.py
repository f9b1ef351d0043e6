"""The picture of a job over time: a row a stage, a bar an attempt, and before it how long it waited. Pure.

Coordinates are those of an SVG's view box. The same is a table of attempts, for whoever does not see the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from api_client.contract.job import Attempt, AttemptOutcome, Job
from api_client.contract.stages import StageName
from api_client.words.formatting import format_duration
from api_client.words.language import Language
from api_client.words.states import state_word

WIDTH: Final = 760
LEFT: Final = 130
RIGHT: Final = 750
ROW: Final = 24
TOP: Final = 6
_SMALLEST: Final = 3.0
"""Width of the narrowest bar, so that a stage of a tenth of a second among hours is still seen."""
_TICKS: Final = 4


@dataclass(frozen=True)
class AttemptLine:
    """One attempt in the table.

    Attributes:
        stage: Its stage.
        title: The stage's name.
        attempt: The attempt.
        outcome: How it ended, as a word.
        waited_s: Seconds from when it could have begun, at the earliest, to when it did.
        seconds: How long it took, or has taken.
    """

    stage: StageName
    title: str
    attempt: Attempt
    outcome: str
    waited_s: float
    seconds: float


@dataclass(frozen=True)
class TimeBar:
    """A bar: an attempt, or the waiting before it (kind ``wait``)."""

    kind: str
    x: float
    y: float
    width: float
    title: str


@dataclass(frozen=True)
class Timeline:
    """The drawing and the table."""

    names: Sequence[tuple[str, float]]
    bars: Sequence[TimeBar]
    ticks: Sequence[tuple[float, str]]
    height: float
    lines: Sequence[AttemptLine]


def timeline_of(job: Job, language: Language, now: datetime | None = None) -> Timeline | None:
    """Draw a job's attempts; ``None`` before the first."""
    now = now or datetime.now(UTC)
    lines = [*_lines(job, language, now)]
    if not lines:
        return None
    ends = [line.attempt.finished_at or now for line in lines]
    first, last = job.created_at, max(*ends, job.finished_at or job.created_at)
    scale = (RIGHT - LEFT) / max((last - first).total_seconds(), 0.001)
    rows = {line.stage: number for number, line in enumerate({line.stage: line for line in lines}.values())}
    bars: list[TimeBar] = []
    for line in lines:
        start = (line.attempt.started_at - first).total_seconds()
        y = TOP + rows[line.stage] * ROW
        x, width = LEFT + max(start, 0) * scale, max(line.seconds * scale, _SMALLEST)
        if line.waited_s * scale >= 1:
            waited = format_duration(line.waited_s)
            bars.append(TimeBar("wait", x - line.waited_s * scale, y, line.waited_s * scale, waited))
        said = f"{line.title} {line.attempt.number}: {line.outcome}, {format_duration(line.seconds)}"
        bars.append(TimeBar(line.attempt.outcome.value, min(x, RIGHT - _SMALLEST), y, min(width, RIGHT - x + 1), said))
    total = (last - first).total_seconds()
    ticks = [(LEFT + (RIGHT - LEFT) * n / _TICKS, format_duration(total * n / _TICKS)) for n in range(_TICKS + 1)]
    titles = {line.stage: line.title for line in lines}
    names = [(titles[stage], TOP + row * ROW) for stage, row in rows.items()]
    return Timeline(names, bars, ticks, TOP + len(rows) * ROW, lines)


def _lines(job: Job, language: Language, now: datetime) -> Iterator[AttemptLine]:
    """All attempts as they began. One could have begun when the one before it had ended, the first when asked for."""
    pairs = [(stage.name, attempt) for stage in job.stages for attempt in stage.attempts]
    free_at = job.created_at
    for name, attempt in sorted(pairs, key=lambda pair: pair[1].started_at):
        ended = attempt.finished_at or (job.finished_at if job.finished else None) or now
        running = attempt.outcome is AttemptOutcome.RUNNING
        yield AttemptLine(
            stage=name,
            title=name.spec.title(language),
            attempt=attempt,
            outcome=state_word(language, attempt.outcome.value),
            waited_s=max(0.0, (attempt.started_at - free_at).total_seconds()),
            seconds=max(0.0, ((now if running else ended) - attempt.started_at).total_seconds()),
        )
        free_at = max(free_at, ended)

"""Following jobs until they end: drawn in place on a terminal, as plain lines elsewhere, as JSON lines on request."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Group
from rich.live import Live

from api_client.cli.output import Output
from api_client.cli.render.log import log_line, progress_fraction
from api_client.cli.render.watch import MAX_TAIL, Frame, watch_lines
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import Event, EventKind
from api_client.contract.job import Job
from api_client.contract.waiting import WaitReason

if TYPE_CHECKING:
    from api_client.client import PackagingClient

POLL_S = 0.25
REDIS_PATIENCE_S = 60.0
"""How long to go on while Redis does not answer; the jobs themselves go on anyway."""
_PLAIN_STEP = 0.1
_PLAIN_EVERY_S = 15.0


class View(Protocol):
    """Shows jobs as they go on."""

    def show(self, jobs: Sequence[Job], events: Sequence[Event], *, away: bool) -> None:
        """Show the jobs' present state, what was logged since the last call, and whether Redis is away."""


class Follower:
    """Polls jobs and their logs.

    Args:
        client: A connected client.
        job_ids: The jobs, each once.

    Raises:
        PackagingError: ``job_not_found``; ``redis_unreachable`` after :data:`REDIS_PATIENCE_S`.
    """

    def __init__(self, client: PackagingClient, job_ids: Sequence[str]) -> None:
        self._client = client
        self._after = dict.fromkeys(dict.fromkeys(job_ids), "0")
        self._away_since: float | None = None
        self.jobs = [client.get(job_id) for job_id in self._after]

    @property
    def away(self) -> bool:
        """Whether the last poll found no Redis."""
        return self._away_since is not None

    @property
    def finished(self) -> bool:
        """Whether every job has ended."""
        return all(job.finished for job in self.jobs)

    def poll(self) -> list[Event]:
        """Read the jobs, then what was logged since the last poll, so that an ended job's log is whole."""
        try:
            self.jobs = [job if job.finished else self._client.get(job.id) for job in self.jobs]
            events = [event for job_id in self._after for event in self._new_events(job_id)]
        except PackagingError as error:
            if error.code not in (ErrorCode.REDIS_UNREACHABLE, ErrorCode.REDIS_NO_WRITES):
                raise
            self._away_since = self._away_since or time.monotonic()
            if time.monotonic() - self._away_since > REDIS_PATIENCE_S:
                raise
            return []
        self._away_since = None
        return sorted(events, key=lambda event: event.time)

    def _new_events(self, job_id: str) -> list[Event]:
        events = list(self._client.events(job_id, after=self._after[job_id]))
        if events:
            self._after[job_id] = events[-1].id
        return events


def follow(follower: Follower, view: View) -> list[Job]:
    """Show jobs until all have ended."""
    pause = threading.Event()
    while True:
        events = follower.poll()
        view.show(follower.jobs, events, away=follower.away)
        if follower.finished and not follower.away:
            return follower.jobs
        pause.wait(POLL_S)


def watch_jobs(client: PackagingClient, job_ids: Sequence[str], output: Output) -> list[Job]:
    """Follow jobs in the way that suits the output.

    Returns:
        The ended jobs, in the order in which they were named.

    Raises:
        PackagingError: as :class:`Follower`.
    """
    follower = Follower(client, job_ids)
    if output.as_json:
        return follow(follower, JsonView(output))
    if not output.live:
        return follow(follower, PlainView(output))
    with LiveView(output) as view:
        return follow(follower, view)


class JsonView:
    """Every log entry as a JSON line, ``{"event": ...}``."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def show(self, jobs: Sequence[Job], events: Sequence[Event], *, away: bool) -> None:
        """Write the new entries; they tell all, so that the jobs themselves are not needed."""
        del jobs, away
        for event in events:
            self._output.document({"event": event})


class PlainView:
    """Log entries as lines; of the progress a line at every tenth, or every 15 s."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._shown: dict[tuple[str, str], tuple[float, float]] = {}
        self._away = False
        self._reasons: dict[str, WaitReason | None] = {}

    def show(self, jobs: Sequence[Job], events: Sequence[Event], *, away: bool) -> None:
        """Write the new entries."""
        for event in events:
            if event.kind is not EventKind.PROGRESS or self._is_due(event):
                self._output.notes.print(log_line(event, job=event.job_id if len(jobs) > 1 else ""), soft_wrap=True)
        if away and not self._away:
            self._output.say(self._output.text("redis_away"))
        self._away = away
        for job in jobs:
            self._say_why(job)

    def _say_why(self, job: Job) -> None:
        """Say why a job waits, once for each reason; a full worker is no news."""
        waiting = job.waiting_for
        reason = None if waiting is None or waiting.reason is WaitReason.BUSY else waiting.reason
        if self._reasons.get(job.id) == reason:
            return
        self._reasons[job.id] = reason
        if waiting is not None and reason is not None:
            told, text = waiting.told(self._output.language), self._output.text
            self._output.say(f"{job.id} {text('waits')}: {told.why}; {text('freed')}: {told.frees}")

    def _is_due(self, event: Event) -> bool:
        fraction = progress_fraction(event)
        if fraction is None:
            return False
        key = (event.job_id, event.stage.value if event.stage else "")
        shown, when = self._shown.get(key, (-1.0, 0.0))
        late = time.monotonic() - when > _PLAIN_EVERY_S
        if 0 <= fraction - shown < _PLAIN_STEP and not late and not (fraction == 1 and shown < 1):
            return False
        self._shown[key] = (fraction, time.monotonic())
        return True


class LiveView(AbstractContextManager["LiveView"]):
    """The picture of ``render.watch``, drawn in place; the last one stays."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._console = output.notes
        self._size = self._console.size
        self._tail: deque[Event] = deque(maxlen=MAX_TAIL)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, jobs: Sequence[Job], events: Sequence[Event], *, away: bool) -> None:
        """Draw the picture anew."""
        self._tail.extend(event for event in events if event.kind is not EventKind.PROGRESS)
        size = self._console.size
        if size != self._size:
            # lines drawn before may have wrapped; only a fresh screen is sure to be right
            self._size = size
            self._console.clear()
        frame = Frame(
            jobs=jobs,
            tail=tuple(self._tail),
            now=datetime.now(UTC),
            width=size.width,
            height=size.height - 1,
            ascii_only=self._console.options.ascii_only,
            note=self._output.text("redis_away") if away else "",
        )
        self._live.update(Group(*watch_lines(self._output, frame)), refresh=True)

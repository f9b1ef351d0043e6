"""Jobs as a command line chooses them: by ids, parts of ids, or by what they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from api_client.cli.arguments import (
    CodeOption,
    LabelOption,
    SearchOption,
    SinceOption,
    StateOption,
    parse_code,
    parse_since,
    parse_state,
)
from api_client.cli.flags import FlagGroup
from api_client.cli.requests import parse_labels
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Job, JobState
from api_client.contract.job_search import SEARCHED_FIELDS, searched_texts

if TYPE_CHECKING:
    from api_client.client import PackagingClient


@dataclass(frozen=True)
class JobChoice:
    """What jobs must be like; an empty one takes all."""

    state: JobState | None = None
    labels: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None
    search: str = ""
    code: ErrorCode | None = None

    def jobs(self, client: PackagingClient, limit: int, cursor: str | None = None) -> list[Job]:
        """The newest jobs that match, newest first, at most so many."""
        if not self.search and self.code is None:
            return client.list(self.state, dict(self.labels), self.since, limit, cursor)
        state = JobState.FAILED if self.code is not None and self.state is None else self.state
        newest_first = client.iterate(state, dict(self.labels), self.since, cursor)
        return [*itertools.islice((job for job in newest_first if self._takes(job)), limit)]

    def _takes(self, job: Job) -> bool:
        failure = job.failure
        if self.code is not None and (failure is None or failure.code != self.code):
            return False
        return not self.search or any(self.search in text.casefold() for text in _texts(job))


@dataclass(frozen=True)
class JobChoiceFlags(FlagGroup):
    """What jobs must be like, as typed."""

    state: StateOption = None
    label: LabelOption = None
    since: SinceOption = None
    search: SearchOption = None

    def choice(self) -> JobChoice:
        """What they say.

        Raises:
            PackagingError: ``request_invalid`` for one that cannot be read.
        """
        labels = tuple(parse_labels(self.label or ()).items())
        since = parse_since(self.since) if self.since else None
        return JobChoice(parse_state(self.state), labels, since, (self.search or "").casefold())


@dataclass(frozen=True)
class EndedChoiceFlags(JobChoiceFlags):
    """The same, with what a job failed of."""

    code: CodeOption = None

    def choice(self) -> JobChoice:
        """As :meth:`JobChoiceFlags.choice`."""
        return replace(super().choice(), code=parse_code(self.code))


def _texts(job: Job) -> Iterator[str]:
    request = job.request
    task = request.task.task_id if request.task else None
    fields = [getattr(request, name) for name in SEARCHED_FIELDS]
    return searched_texts(job.id, fields, request.labels, task, job.failure)


def chosen(client: PackagingClient, ids: Sequence[str] | None, wanted: JobChoice, limit: int) -> list[str]:
    """Ids of the jobs that a command is about: those named, or those that match.

    Raises:
        PackagingError: ``request_invalid`` for both or neither, and as ``PackagingClient.find``.
    """
    if bool(ids) == (wanted != JobChoice()):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            "name jobs, or say what they are like with --state, --label, --since, --search or --code",
            remedy="Jobs are named by id, by a part of it, or as last.",
        )
    if ids:
        return [*dict.fromkeys(client.find(given) for given in ids)]
    return [job.id for job in wanted.jobs(client, limit)]

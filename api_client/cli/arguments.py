"""Arguments that several commands share, and how the shell completes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated

import typer

from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import JobState, StageName
from api_client.contract.outputs import named_run
from api_client.words.language import Language
from api_client.words.spans import read_since
from api_client.words.suggestions import did_you_mean, nearest

_COMPLETION_TIMEOUT_S = 0.5


def complete_job(incomplete: str) -> Iterator[tuple[str, str]]:
    """Ids of recent jobs for the shell; none where the service does not answer at once."""
    try:
        with open_client(timeout_s=_COMPLETION_TIMEOUT_S) as client:
            jobs = client.list(limit=30)
    except PackagingError:
        return
    yield from (("last", "the newest job"),) if "last".startswith(incomplete) else ()
    for job in jobs:
        # a shell offers only what goes on from what is typed, so a part from the middle is offered as it stands
        if incomplete in job.id:
            yield (
                job.id if job.id.startswith(incomplete) else incomplete + job.id.partition(incomplete)[2],
                f"{job.id}, {job.state.value}, {named_run(job.request)}",
            )


def complete_label(incomplete: str) -> Iterator[str]:
    """Labels of recent jobs for the shell."""
    try:
        with open_client(timeout_s=_COMPLETION_TIMEOUT_S) as client:
            jobs = client.list(limit=100)
    except PackagingError:
        return
    labels = {f"{key}={value}" for job in jobs for key, value in job.request.labels.items()}
    yield from (label for label in sorted(labels) if label.startswith(incomplete))


JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="Id of the job, a part of it, or last.", autocompletion=complete_job)
]
CodeOption = Annotated[
    str | None,
    typer.Option(
        "--code",
        help="Only jobs that failed with this code.",
        autocompletion=lambda: [code.value for code in ErrorCode],
        metavar="CODE",
    ),
]
SearchOption = Annotated[
    str | None,
    typer.Option("--search", help="Only jobs with this in their id, labels, paths or error.", metavar="TEXT"),
]


RunPlace = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run's directory, one of its checkpoints, or a model: a path or s3://.",
        show_default=False,
    ),
]


DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        metavar="",
        help="Only say what it would do: stages and their time, files, sizes, room on disk.",
    ),
]


StateOption = Annotated[
    str | None,
    typer.Option(
        "--state",
        "-s",
        help="Only jobs in this state.",
        autocompletion=lambda: [state.value for state in JobState],
        metavar="STATE",
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        "-l",
        help="Only jobs with this label. May be repeated.",
        autocompletion=complete_label,
        metavar="KEY=VALUE",
    ),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="Only jobs submitted since: 24h, 7d or a date.", metavar="WHEN")
]


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """A time, from a span (``30m``, ``24h``, ``7d``) or an ISO date.

    Raises:
        PackagingError: ``request_invalid``.
    """
    try:
        return read_since(text, now)
    except ValueError:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"--since {text!r} is no span of time or date",
            remedy="Write e.g. 30m, 24h, 7d or 2025-11-23T08:00.",
            fields={"field": "since"},
        ) from None


def parse_state(text: str | None) -> JobState | None:
    """A job state.

    Raises:
        PackagingError: ``request_invalid`` with the nearest one.
    """
    return None if text is None else JobState(parse_one_of(text, [state.value for state in JobState], "state"))


def parse_stage(text: str | None) -> StageName | None:
    """A stage, by its name or by its title in either language.

    Raises:
        PackagingError: ``request_invalid`` with the nearest one.
    """
    if text is None:
        return None
    titles = {stage.spec.title(language).lower(): stage for language in Language for stage in StageName}
    titled = titles.get(text.strip().lower())
    return titled or StageName(parse_one_of(text.replace("-", "_"), [stage.value for stage in StageName], "stage"))


def parse_code(text: str | None) -> ErrorCode | None:
    """An error code.

    Raises:
        PackagingError: ``request_invalid`` with the nearest one.
    """
    return None if text is None else ErrorCode(parse_one_of(text, [code.value for code in ErrorCode], "error code"))


def parse_one_of(text: str, known: Sequence[str], what: str) -> str:
    """One of the known words, whatever case it is written in.

    Raises:
        PackagingError: ``request_invalid`` with the nearest one.
    """
    if text.lower() in known:
        return text.lower()
    suggestion = nearest(text.lower(), known, 0.4)
    raise PackagingError(
        ErrorCode.REQUEST_INVALID,
        f"unknown {what} {text!r}" + did_you_mean(suggestion),
        remedy=f"Known: {', '.join(known)}." if len(known) < 20 else None,
        fields={"field": what, "suggestion": suggestion},
    )

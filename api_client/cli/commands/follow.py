"""``watch``, ``wait`` and ``logs``: following jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from api_client.cli.arguments import (
    JobId,
    LabelOption,
    SinceOption,
    StateOption,
    complete_job,
    parse_one_of,
    parse_since,
    parse_state,
)
from api_client.cli.command import add_command
from api_client.cli.failures import DONE, INTERRUPTED, JOB_FAILED, error_text
from api_client.cli.output import Output
from api_client.cli.render.job import headline
from api_client.cli.render.log import LEVELS, at_least, log_line
from api_client.cli.render.made import made_lines
from api_client.cli.requests import parse_labels
from api_client.cli.watching import watch_jobs
from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import Event, EventKind
from api_client.contract.job import Job, JobState

if TYPE_CHECKING:
    from api_client.client import PackagingClient

CHOSEN_LIMIT = 200
"""Jobs of one state that are followed at most."""
NAMED_LIMIT = 3
"""Jobs that the words after Ctrl-C name."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    add_command(app, watch, panel=panel)
    add_command(app, wait, panel=panel)
    add_command(app, logs, panel=panel)


def watch(
    output: Output,
    *,
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]...", autocompletion=complete_job, show_default=False)
    ] = None,
    state: StateOption = None,
    label: LabelOption = None,
    since: SinceOption = None,
) -> int:
    """Follow jobs live, with a bar per stage and the newest log lines.

    Without an id, every job that is queued or running; with --state, --label or --since, those that match. The jobs are
    chosen when it starts. Ctrl-C leaves them running. With --json one log entry per line, then a line per job as it
    ended. Exits 1 if a job failed.
    """
    wanted, labels, when = parse_state(state), parse_labels(label or ()), parse_since(since) if since else None
    if job_ids and (state or label or since):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            "give jobs or --state, --label and --since, not both",
            remedy="See `trainpack watch --help`.",
        )
    with open_client() as client:
        named = [client.find(given) for given in job_ids or ()]
        ids = list(dict.fromkeys(named or chosen_jobs(client, wanted, labels, when)))
        if not ids:
            output.say(output.text("all_done" if wanted is None else "no_jobs"))
            return DONE
        return watch_and_report(client, ids, output)


def wait(
    output: Output,
    *,
    job_id: JobId,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Seconds to wait at most; exit 1 after them.", min=0, metavar="S")
    ] = None,
) -> int:
    """Wait until a job has ended.

    Exits 1 if it failed, or if it has not ended in time.
    """
    with open_client() as client:
        job = client.wait(client.find(job_id), timeout_s)
    if output.as_json:
        output.document(job)
    else:
        report_end(output, [job])
    return end_of([job])


def logs(
    output: Output,
    *,
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", metavar="", help="Go on until the job has ended.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", metavar="", help="Also progress and debug entries.")
    ] = False,
    after: Annotated[str, typer.Option("--after", help="Id of the last entry already seen.", metavar="ID")] = "0",
    grep: Annotated[
        str | None, typer.Option("--grep", "-g", help="Only entries in which this is found; letters' case is ignored.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            help="Only entries as serious as this: debug, info, warning or error.",
            autocompletion=lambda: [*LEVELS],
            metavar="LEVEL",
        ),
    ] = None,
) -> int:
    """Print a job's log.

    With --json one entry per line, each with the id that --after takes.
    """
    least = parse_one_of(level or ("debug" if everything else "info"), LEVELS, "level")
    sought = grep.casefold() if grep is not None else ""
    with open_client() as client:
        for event in client.events(client.find(job_id), follow=follow, after=after):
            hidden = event.kind is EventKind.PROGRESS and not everything
            if not hidden and at_least(event, least) and sought in event.message.casefold():
                _print_event(output, event)
    return DONE


def _print_event(output: Output, event: Event) -> None:
    if output.as_json:
        output.document(event)
    else:
        output.results.print(log_line(event), soft_wrap=True)


def chosen_jobs(
    client: PackagingClient, state: JobState | None, labels: dict[str, str], since: datetime | None
) -> list[str]:
    """Ids of the newest jobs that match, oldest first; of those queued or running where no state is given."""
    states = (JobState.RUNNING, JobState.QUEUED) if state is None else (state,)
    jobs = [job for state in states for job in client.list(state, labels, since, CHOSEN_LIMIT)]
    return [job.id for job in sorted(jobs, key=lambda job: job.created_at)]


def watch_and_report(client: PackagingClient, job_ids: Sequence[str], output: Output) -> int:
    """Follow jobs to their end and print what came of them.

    Returns:
        The exit code.
    """
    try:
        jobs = watch_jobs(client, job_ids, output)
    except KeyboardInterrupt:
        _say_they_go_on(output, job_ids)
        return INTERRUPTED
    if output.as_json:
        for job in jobs:
            output.document({"job": job})
    else:
        report_end(output, jobs)
    return end_of(jobs)


def _say_they_go_on(output: Output, job_ids: Sequence[str]) -> None:
    several = len(job_ids) > 1
    named = " ".join(job_ids) if len(job_ids) <= NAMED_LIMIT else ""
    output.say(f"\n{output.text('jobs_go_on' if several else 'job_goes_on')}")
    output.say(f"  {output.text('watch_again', id=named).rstrip()}")
    output.say(f"  {output.text('cancel_hint', id='JOB' if several else job_ids[0])}")


def report_end(output: Output, jobs: Sequence[Job]) -> None:
    """Print how jobs ended: errors to standard error, outputs to standard output."""
    for job in jobs:
        if len(jobs) > 1 or not output.live:
            output.notes.print(headline(output, job), soft_wrap=True)
        if (failure := job.failure) is not None:
            output.notes.print(error_text(output, failure), soft_wrap=True)
        if job.outputs:
            output.show_whole(*made_lines(output, job, ready=len(jobs) == 1))


def end_of(jobs: Sequence[Job]) -> int:
    """Exit code for ended jobs: 0 if all succeeded."""
    return DONE if all(job.state is JobState.SUCCEEDED for job in jobs) else JOB_FAILED

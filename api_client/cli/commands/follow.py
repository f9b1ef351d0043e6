"""``watch``, ``wait`` and ``logs``: following jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from api_client.cli.arguments import JobId, complete_job
from api_client.cli.command import add_command
from api_client.cli.connection import open_client
from api_client.cli.failures import DONE, INTERRUPTED, JOB_FAILED, error_text
from api_client.cli.output import Output
from api_client.cli.render.job import headline, outputs_table
from api_client.cli.render.log import log_line
from api_client.cli.watching import watch_jobs
from api_client.client import PackagingClient
from api_client.errors import PackagingError
from api_client.events import Event, EventKind
from api_client.job import Job, JobState

ACTIVE_LIMIT = 200


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
) -> int:
    """Follow jobs live, with a bar per stage and the newest log lines.

    Without an id, every job that is queued or running. Ctrl-C leaves the jobs running. With --json one log entry per
    line, then a line per job as it ended. Exits 1 if a job failed.
    """
    with open_client() as client:
        ids = list(dict.fromkeys(job_ids or active_jobs(client)))
        if not ids:
            output.say(output.text("all_done"))
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
        job = client.wait(job_id, timeout_s)
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
) -> int:
    """Print a job's log.

    With --json one entry per line, each with the id that --after takes.
    """
    with open_client() as client:
        for event in client.events(job_id, follow=follow, after=after):
            if not everything and (event.kind is EventKind.PROGRESS or event.level == "debug"):
                continue
            _print_event(output, event)
    return DONE


def _print_event(output: Output, event: Event) -> None:
    if output.as_json:
        output.document(event)
    else:
        output.results.print(log_line(event), soft_wrap=True)


def active_jobs(client: PackagingClient) -> list[str]:
    """Ids of the jobs that are queued or running, oldest first."""
    jobs = [*client.list(JobState.RUNNING, limit=ACTIVE_LIMIT), *client.list(JobState.QUEUED, limit=ACTIVE_LIMIT)]
    return [job.id for job in sorted(jobs, key=lambda job: job.created_at)]


def watch_and_report(client: PackagingClient, job_ids: Sequence[str], output: Output) -> int:
    """Follow jobs to their end and print what came of them.

    Returns:
        The exit code.
    """
    try:
        jobs = watch_jobs(client, job_ids, output)
    except KeyboardInterrupt:
        output.say(f"\n{output.text('job_goes_on')}")
        output.say(f"  {output.text('watch_again', id=' '.join(job_ids))}")
        output.say(f"  {output.text('cancel_hint', id=job_ids[0])}")
        return INTERRUPTED
    if output.as_json:
        for job in jobs:
            output.document({"job": job})
    else:
        report_end(output, jobs)
    return end_of(jobs)


def report_end(output: Output, jobs: Sequence[Job]) -> None:
    """Print how jobs ended: errors to standard error, outputs to standard output."""
    for job in jobs:
        if len(jobs) > 1 or not output.live:
            output.notes.print(headline(output, job), soft_wrap=True)
        if job.error is not None:
            output.notes.print(error_text(output, PackagingError.from_dict(job.error)), soft_wrap=True)
        if job.outputs:
            output.show(outputs_table(output, job.outputs, output.results.width))


def end_of(jobs: Sequence[Job]) -> int:
    """Exit code for ended jobs: 0 if all succeeded."""
    return DONE if all(job.state is JobState.SUCCEEDED for job in jobs) else JOB_FAILED

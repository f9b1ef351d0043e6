"""``status``, ``list``, ``cancel`` and ``replay``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from api_client.cli.arguments import complete_job, parse_stage
from api_client.cli.command import add_command
from api_client.cli.failures import DONE
from api_client.cli.output import Output
from api_client.cli.render.job import headline, job_view
from api_client.cli.render.lists import jobs_table, service_view
from api_client.cli.selection import EndedChoiceFlags, JobChoiceFlags, chosen
from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Job, JobState, StageName

JobIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[JOB]...",
        help="Ids of jobs, parts of ids, or last.",
        autocompletion=complete_job,
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", metavar="", help="Only say which jobs it would be.")]
MOST_JOBS = 100_000
DEFAULT_REPLAY_SPAN = timedelta(hours=24)


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    add_command(app, status, panel=panel)
    add_command(app, list_jobs, name="list", panel=panel)
    add_command(app, cancel, panel=panel)
    add_command(app, replay, panel=panel)


def status(
    output: Output,
    *,
    job_id: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="Id of the job.", autocompletion=complete_job, show_default=False),
    ] = None,
) -> int:
    """Show a job, or without an id the workers and queues.

    Of a job: its stages and attempts, the error with cause and remedy, the outputs.
    """
    if job_id is None:
        return _service(output)
    with open_client() as client:
        job = client.get(client.find(job_id))
    if output.as_json:
        output.document(job)
    else:
        output.show(*job_view(output, job, output.results.width))
    return DONE


def _service(output: Output) -> int:
    with open_client() as client:
        health, workers, queues = client.ping(), client.workers(), client.queues()
    if output.as_json:
        output.document({"redis": health, "workers": workers, "queues": queues})
        return DONE
    output.show(*service_view(output, workers, queues, output.results.width))
    for warning in health.warnings:
        output.say(warning, style="yellow")
    return DONE


def list_jobs(
    output: Output,
    *,
    wanted: EndedChoiceFlags,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1, max=1000, metavar="N")] = 20,
    cursor: Annotated[
        str | None,
        typer.Option("--cursor", help="Go on after this job, the last one of the list before.", metavar="JOB"),
    ] = None,
) -> int:
    """List jobs, newest first."""
    with open_client() as client:
        jobs = wanted.choice().jobs(client, limit, cursor)
    if output.as_json:
        output.document({"jobs": jobs, "cursor": jobs[-1].id if len(jobs) == limit else None})
    elif jobs:
        output.show(jobs_table(output, jobs, output.results.width))
    else:
        output.say(output.text("no_jobs"))
    return DONE


def cancel(
    output: Output,
    *,
    job_ids: JobIds = None,
    wanted: JobChoiceFlags,
    dry_run: DryRun = False,
) -> int:
    """Cancel jobs, by name or by what they are like.

    A queued one ends at once, a running one within seconds; nothing half-written stays.
    """
    choice = wanted.choice()
    with open_client() as client:
        ids = chosen(client, job_ids, choice, MOST_JOBS)
        if dry_run:
            return _show(output, [job for job in map(client.get, ids) if not job.finished], alone=False)
        jobs = _each(ids, client.cancel, gone=() if job_ids else (ErrorCode.JOB_FINISHED, ErrorCode.JOB_NOT_FOUND))
    return _show(output, jobs, alone=job_ids is not None and len(job_ids) == 1)


def replay(
    output: Output,
    *,
    job_ids: JobIds = None,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from-stage",
            help="First stage to run again; the first that did not succeed where not given.",
            autocompletion=lambda: [stage.value for stage in StageName],
            metavar="STAGE",
        ),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", metavar="", help="Replay the failed jobs of the last 24 hours, or --since.")
    ] = False,
    wanted: EndedChoiceFlags,
    dry_run: DryRun = False,
) -> int:
    """Run ended jobs again, without redoing what succeeded.

    Jobs by name, or by what they are like; by default from the first stage that did not succeed.
    """
    stage = parse_stage(from_stage)
    choice = wanted.choice()
    if failed:
        since = choice.since or datetime.now(UTC) - DEFAULT_REPLAY_SPAN
        choice = replace(choice, state=JobState.FAILED, since=since)
    with open_client() as client:
        ids = chosen(client, job_ids, choice, MOST_JOBS)
        if dry_run:
            return _show(output, [job for job in map(client.get, ids) if job.finished], alone=False)
        raced = () if job_ids else (ErrorCode.JOB_RUNNING, ErrorCode.JOB_NOT_FOUND, ErrorCode.JOB_NEWER)
        jobs = _each(ids, lambda job_id: client.replay(job_id, stage), gone=raced)
    return _show(output, jobs, alone=job_ids is not None and len(job_ids) == 1)


def _each(ids: Sequence[str], act: Callable[[str], Job], *, gone: Collection[ErrorCode]) -> list[Job]:
    """What came of each; one that changed between the choice and the act is left out where ``gone`` says so."""
    done = []
    for job_id in ids:
        try:
            done.append(act(job_id))
        except PackagingError as error:
            if error.code not in gone:
                raise
    return done


def _show(output: Output, jobs: Sequence[Job], *, alone: bool) -> int:
    """One job that was named by itself, or a list."""
    if output.as_json:
        output.document(jobs[0] if alone else {"jobs": jobs})
    elif alone:
        output.show(headline(output, jobs[0]))
    elif jobs:
        output.show(jobs_table(output, jobs, output.results.width))
    else:
        output.say(output.text("no_jobs"))
    return DONE

"""``status``, ``list``, ``cancel`` and ``replay``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from api_client.cli.arguments import (
    JobId,
    LabelOption,
    SinceOption,
    StateOption,
    complete_job,
    parse_code,
    parse_since,
    parse_stage,
    parse_state,
)
from api_client.cli.command import add_command
from api_client.cli.failures import DONE
from api_client.cli.output import Output
from api_client.cli.render.job import headline, job_view
from api_client.cli.render.lists import jobs_table, service_view
from api_client.cli.requests import parse_labels
from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName

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
        job = client.get(job_id)
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
    state: StateOption = None,
    label: LabelOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1, max=1000, metavar="N")] = 20,
    cursor: Annotated[
        str | None,
        typer.Option("--cursor", help="Go on after this job, the last one of the list before.", metavar="JOB"),
    ] = None,
) -> int:
    """List jobs, newest first."""
    wanted, when = parse_state(state), parse_since(since) if since else None
    labels = parse_labels(label or ())
    with open_client() as client:
        jobs = client.list(wanted, labels, when, limit, cursor)
    if output.as_json:
        output.document({"jobs": jobs, "cursor": jobs[-1].id if len(jobs) == limit else None})
    elif jobs:
        output.show(jobs_table(output, jobs, output.results.width))
    else:
        output.say(output.text("no_jobs"))
    return DONE


def cancel(output: Output, *, job_id: JobId) -> int:
    """Cancel a job.

    A queued one ends at once, a running one within seconds; nothing half-written stays.
    """
    with open_client() as client:
        job = client.cancel(job_id)
    if output.as_json:
        output.document(job)
    else:
        output.show(headline(output, job))
    return DONE


def replay(
    output: Output,
    *,
    job_id: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="Id of the job.", autocompletion=complete_job, show_default=False),
    ] = None,
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
        bool, typer.Option("--failed", metavar="", help="Replay all failed jobs instead of one.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", help="With --failed: submitted since, 24h by default.", metavar="WHEN"),
    ] = None,
    code: Annotated[
        str | None, typer.Option("--code", help="With --failed: only jobs that failed with this code.", metavar="CODE")
    ] = None,
) -> int:
    """Run ended jobs again, without redoing what succeeded.

    Either one job, by default from its first stage that did not succeed, or with --failed all failed ones.
    """
    _check_replay(job_id, failed, since, code, from_stage)
    stage = parse_stage(from_stage)
    with open_client() as client:
        if job_id is not None:
            job = client.replay(job_id, stage)
            if output.as_json:
                output.document(job)
            else:
                output.show(headline(output, job))
            return DONE
        when = parse_since(since) if since else datetime.now(UTC) - DEFAULT_REPLAY_SPAN
        jobs = client.replay_failed(when, parse_code(code))
    if output.as_json:
        output.document({"jobs": jobs})
    elif jobs:
        output.show(jobs_table(output, jobs, output.results.width))
    else:
        output.say(output.text("no_jobs"))
    return DONE


def _check_replay(
    job_id: str | None, failed: bool, since: str | None, code: str | None, from_stage: str | None
) -> None:
    problem = None
    if (job_id is None) != failed:
        problem = "give a job or --failed, one of them"
    elif failed and from_stage is not None:
        problem = "--from-stage goes with one job, not with --failed"
    elif not failed and (since or code):
        problem = "--since and --code go with --failed"
    if problem:
        raise PackagingError(ErrorCode.REQUEST_INVALID, problem, remedy="See `trainpack replay --help`.")

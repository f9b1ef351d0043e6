"""Jobs: submit, look at, cancel, replay."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Response

from api_client.console.api.documents import NO_JOB, BulkReplayBody, JobPage, ReplayBody, ReplayedJobs, errors
from api_client.console.api.parameters import JobId, Labels, Operator, Reader, Submitter
from api_client.console.api.times import Time
from api_client.console.api.told import ReaderLanguage, told_job
from api_client.console.context import Client
from api_client.console.requests import HttpRequest
from api_client.contract.errors import ErrorCode
from api_client.contract.job import Job, JobState

router = APIRouter(tags=["jobs"])
_log = logging.getLogger(__name__)
_C = ErrorCode


@router.post("/jobs", status_code=201, responses=errors(_C.IDEMPOTENCY_CONFLICT))
def submit_job(
    request: HttpRequest, client: Client, principal: Submitter, response: Response, language: ReaderLanguage
) -> Job:
    """Check a request and queue it. With an `idempotency_key` it can be sent again and makes one job at most."""
    job = client.submit(request)
    _log.info("%s submitted job %s", principal.name, job.id)
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return told_job(job, language)


@dataclass(frozen=True)
class JobSelection:
    """Which jobs to list, and which page of them."""

    labels: dict[str, str]
    state: JobState | None
    since: datetime | None
    limit: int
    cursor: str | None


def job_selection(
    labels: Labels,
    *,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    since: Annotated[
        Time | None, Query(description="Only jobs submitted at or after this time. Without a zone: UTC.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=100)] = None,
) -> JobSelection:
    """The query of a list of jobs."""
    return JobSelection(labels, state, since, limit, cursor)


@router.get("/jobs")
def list_jobs(
    client: Client, _: Reader, language: ReaderLanguage, chosen: Annotated[JobSelection, Depends(job_selection)]
) -> JobPage:
    """List jobs, newest first, in pages."""
    jobs = client.list(
        state=chosen.state, labels=chosen.labels, since=chosen.since, limit=chosen.limit + 1, cursor=chosen.cursor
    )
    page = tuple(told_job(job, language) for job in jobs[: chosen.limit])
    return JobPage(jobs=page, next_cursor=page[-1].id if len(jobs) > chosen.limit else None)


@router.get("/jobs/{job_id}", responses=NO_JOB)
def get_job(job_id: JobId, client: Client, _: Reader, language: ReaderLanguage) -> Job:
    """Look at a job: its stages, their attempts and progress, what it failed with."""
    return told_job(client.get(job_id), language)


@router.post("/jobs/{job_id}/cancel", responses=NO_JOB | errors(_C.JOB_FINISHED))
def cancel_job(job_id: JobId, client: Client, principal: Submitter, language: ReaderLanguage) -> Job:
    """Ask for a job's end. A queued job ends at once, a running one within seconds."""
    job = client.cancel(job_id)
    _log.info("%s cancelled job %s", principal.name, job_id)
    return told_job(job, language)


@router.post(
    "/jobs/{job_id}/replay", responses=NO_JOB | errors(_C.JOB_RUNNING, _C.REQUEST_INVALID, _C.STAGE_NOT_IN_PLAN)
)
def replay_job(
    *,
    job_id: JobId,
    client: Client,
    principal: Submitter,
    language: ReaderLanguage,
    body: Annotated[ReplayBody | None, Body()] = None,
) -> Job:
    """Run an ended job again, from its first stage that did not succeed or from a chosen one."""
    stage = body.from_stage if body is not None else None
    job = client.replay(job_id, stage)
    _log.info("%s replayed job %s from %s", principal.name, job_id, stage.value if stage else "where it failed")
    return told_job(job, language)


@router.post("/replays")
def replay_failed_jobs(body: BulkReplayBody, client: Client, principal: Operator) -> ReplayedJobs:
    """Replay every failed job submitted since a time; with `code`, only those that failed with it."""
    jobs = client.replay_failed(body.since, body.code)
    _log.info("%s replayed %d failed jobs since %s", principal.name, len(jobs), body.since.isoformat())
    return ReplayedJobs(job_ids=tuple(job.id for job in jobs))

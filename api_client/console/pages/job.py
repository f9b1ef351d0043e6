"""The page of one job, and what can be done with it there: cancel, replay, download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from api_client.client import PackagingClient
from api_client.console.api.parameters import JobId
from api_client.console.archive import tar_of, tar_size, uploaded
from api_client.console.auth import require
from api_client.console.context import Client, DownloadLinks
from api_client.console.identity import Principal
from api_client.console.links import find_output
from api_client.console.pages.job_facts import inputs_of, settings_of
from api_client.console.pages.job_view import (
    LOG_KINDS,
    kind_group,
    stage_lines,
    template_title,
)
from api_client.console.pages.jobs import Reader
from api_client.console.pages.language import page_language
from api_client.console.pages.log_view import LEVELS, LogQuestion, log_lines, part_of
from api_client.console.pages.quality_chart import chart_of
from api_client.console.pages.size_chart import size_chart
from api_client.console.pages.timeline import timeline_of
from api_client.console.pages.view import render, utc_offset_minutes
from api_client.console.roles import Role
from api_client.contract.errors import PackagingError
from api_client.contract.events import Event, EventKind
from api_client.contract.job import JobState, StageState
from api_client.words.formatting import one_line
from api_client.words.states import state_word

Submitter = Annotated[Principal, Depends(require(Role.SUBMIT))]

router = APIRouter(include_in_schema=False, prefix="/jobs")


def _asked_of_log(
    kind: Annotated[list[str] | None, Query()] = None, level: str = "", find: str = "", before: str = "", line: str = ""
) -> LogQuestion:
    return LogQuestion.of(kind, level, find, before, line)


@router.get("/{job_id}")
def job_page(
    request: Request,
    client: Client,
    _: Reader,
    job_id: JobId,
    *,
    asked: Annotated[LogQuestion, Depends(_asked_of_log)],
    part: str = "",
    at: Annotated[int | None, Query(ge=0, le=1000)] = None,
) -> Response:
    """Everything about a job. The script keeps it up to date from the part ``status`` and from the event stream."""
    return _page(request, client, job_id, asked, with_log=part != "status", at=at)


@router.get("/{job_id}/log.txt")
def raw_log(client: Client, _: Reader, job_id: JobId) -> Response:
    """The whole log as a text file."""
    lines = (line.encode() for line in log_lines(client.events(job_id)))
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.log.txt"'}
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/{job_id}/outputs.tar")
def download_all(client: Client, links: DownloadLinks, _: Reader, job_id: JobId) -> Response:
    """Every uploaded file as one tar stream, each checked on its way; one that arrives changed breaks it off."""
    artifacts = uploaded(client.get(job_id))
    headers = {
        "Content-Disposition": f'attachment; filename="{job_id}.tar"',
        "Content-Length": str(tar_size(artifacts)),
    }
    return StreamingResponse(tar_of(artifacts, links.open), media_type="application/x-tar", headers=headers)


@router.get("/{job_id}/outputs/{name}")
def download(client: Client, links: DownloadLinks, _: Reader, job_id: JobId, name: str) -> Response:
    """Go to an uploaded file; the API's route of the same kind answers programs, this one shows errors as pages."""
    return RedirectResponse(links.sign(find_output(client.get(job_id), name)), 303)


@router.post("/{job_id}/cancel")
def cancel_job(request: Request, client: Client, _: Submitter, job_id: JobId) -> Response:
    """Cancel, and show the job; one that has ended meanwhile says so on its page."""
    try:
        client.cancel(job_id)
    except PackagingError as error:
        return _page(request, client, job_id, refused=error)
    return RedirectResponse(_address(job_id), 303)


@router.post("/{job_id}/replay")
def replay_job(
    request: Request, client: Client, _: Submitter, job_id: JobId, from_stage: Annotated[str, Form()] = ""
) -> Response:
    """Replay from a stage, or from the first that did not succeed; one that runs already says so on its page."""
    try:
        client.replay(job_id, from_stage or None)
    except PackagingError as error:
        return _page(request, client, job_id, refused=error)
    return RedirectResponse(_address(job_id), 303)


def _page(
    request: Request,
    client: PackagingClient,
    job_id: str,
    asked: LogQuestion | None = None,
    refused: PackagingError | None = None,
    *,
    with_log: bool = True,
    at: int | None = None,
) -> Response:
    job, language = client.get(job_id), page_language(request)
    asked = asked or LogQuestion.of(None, "", "", "", "")
    events = [*client.events(job_id)] if with_log else []
    shown = part_of(events, asked)
    failed, report = job.failure, job.report
    context = {
        "job": job,
        "address": _address(job_id),
        "state_kind": job.shown_state,
        "state_name": state_word(language, job.shown_state),
        "template": template_title(job.request.template, language, client.templates()),
        "lines": stage_lines(job, language),
        "problem": failed.told(language) if failed else None,
        "failed_stage": next((s.name.value for s in job.stages if s.state is StageState.FAILED), None),
        "report": report,
        "scored": ", ".join(f"{one_line(part)} {count}" for part, count in report.scored.items()) if report else "",
        "sizes": {file.name: file for file in report.files} if report else {},
        "drawn": chart_of(report, job.request.evaluation.max_mean_kld) if report else None,
        "curve": size_chart(job, at),
        "refused": refused.told(language) if refused else None,
        "waiting": job.waiting_for.told(language) if job.waiting_for else None,
        "settings": settings_of(job, language),
        "inputs": inputs_of(job),
        "timeline": timeline_of(job, language),
        "icon": _ICONS.get(job.shown_state, "icon"),
        "uploaded": bool(uploaded(job)),
        "shown": shown,
        "asked": asked,
        "levels": LEVELS,
        "last_id": _last_id(events),
        "log_kinds": [kind.value for kind in LOG_KINDS],
        "group_of": kind_group,
        "again": again_address(job_id),
        "offset_minutes": utc_offset_minutes(),
    }
    return render(request, "job.html", context, 409 if refused else 200)


_ICONS: Final = {state.value: f"icon-{state.value}" for state in JobState if state is not JobState.QUEUED}
"""Icon of a tab by the state of its job."""


def _last_id(events: Sequence[Event]) -> str:
    """Where the event stream goes on. The mark for dropped entries has the id of the entry that follows it."""
    return next((event.id for event in reversed(events) if event.kind is not EventKind.TRUNCATED), "0")


def again_address(job_id: str) -> str:
    """The new job page, filled in from a job."""
    return f"/new?like={quote(job_id, safe='')}"


def _address(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"

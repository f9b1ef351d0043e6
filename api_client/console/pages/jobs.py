"""The page with all jobs: filtered, paged by cursor, brought up to date by the script from the same address."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from api_client.console.auth import require
from api_client.console.context import Client
from api_client.console.identity import Principal
from api_client.console.pages.filters import SPANS, read_filter
from api_client.console.pages.job_view import job_row
from api_client.console.pages.language import page_language
from api_client.console.pages.view import render
from api_client.console.roles import Role
from api_client.contract.job import JobState
from api_client.words.states import state_word

PAGE = 50
Reader = Annotated[Principal, Depends(require(Role.READ))]

router = APIRouter(include_in_schema=False)


@router.get("/")
def home() -> Response:
    """The jobs page is where everyone begins."""
    return RedirectResponse("/jobs", 303)


@router.get("/jobs")
def jobs_page(request: Request, client: Client, _: Reader) -> Response:
    """Jobs, newest first."""
    asked = read_filter(request.query_params)
    found = []
    if asked.bad_label is None:
        found = client.list(asked.state, dict(asked.labels), asked.since, PAGE + 1, asked.cursor)
    language, templates = page_language(request), client.templates()
    context = {
        "asked": asked,
        "rows": [job_row(job, language, templates) for job in found[:PAGE]],
        "older": asked.address(found[PAGE - 1].id) if len(found) > PAGE else None,
        "states": [(state.value, state_word(language, state.value)) for state in JobState],
        "spans": SPANS,
    }
    return render(request, "jobs.html", context, 422 if asked.bad_label is not None else 200)

"""The page with all jobs: counted, filtered, searched, sorted; brought up to date by the script from its address."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from api_client.console.auth import require
from api_client.console.context import Client
from api_client.console.identity import Principal
from api_client.console.pages.choice import select
from api_client.console.pages.filters import ORDERS, SPANS, read_filter
from api_client.console.pages.job_view import job_row
from api_client.console.pages.language import page_language
from api_client.console.pages.view import render
from api_client.console.roles import Role
from api_client.contract.error_codes import ErrorCode
from api_client.contract.job import JobState
from api_client.words.states import state_word

PAGE = 50
MOST_CODES = 8
"""Error codes that have a tile, the most frequent; every code is in the list to choose from."""
Reader = Annotated[Principal, Depends(require(Role.READ))]

router = APIRouter(include_in_schema=False)


@router.get("/")
def home() -> Response:
    """The jobs page is where everyone begins."""
    return RedirectResponse("/jobs", 303)


@router.get("/jobs")
def jobs_page(request: Request, client: Client, _: Reader) -> Response:
    """Jobs as the address asks for them."""
    asked = read_filter(request.query_params)
    selected = select(client.summaries(), asked)
    ids, more = selected.page(asked.cursor, PAGE)
    language, templates = page_language(request), client.templates()
    codes = [*selected.codes.items()]
    context = {
        "asked": asked,
        "rows": [job_row(job, language, templates) for job in client.read_many(ids)],
        "older": asked.address(ids[-1]) if more else None,
        "total": len(selected.ids),
        "all": sum(selected.states.values()),
        "states": [(state, state_word(language, state.value), selected.states.get(state, 0)) for state in JobState],
        "codes": [(ErrorCode(code), count) for code, count in codes[:MOST_CODES] if code in list(ErrorCode)],
        "all_codes": sorted({*selected.codes, *([asked.code.value] if asked.code else [])}),
        "spans": SPANS,
        "orders": ORDERS,
    }
    return render(request, "jobs.html", context, 422 if asked.bad_label is not None else 200)

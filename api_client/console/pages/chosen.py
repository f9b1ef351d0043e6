"""Several jobs at once: a page that says what will happen to each, then the deed, then what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from api_client.client import PackagingClient
from api_client.console.auth import require
from api_client.console.context import Client
from api_client.console.identity import Principal
from api_client.console.pages.choice import select
from api_client.console.pages.filters import read_filter
from api_client.console.pages.language import page_language
from api_client.console.pages.texts import text
from api_client.console.pages.view import render
from api_client.console.roles import Role
from api_client.contract.errors import ErrorClass, PackagingError
from api_client.contract.job import Job, StageState
from api_client.words.language import Language
from api_client.words.states import state_word

MOST: Final = 500
"""Jobs that are cancelled or replayed with one press; each is a round trip or two."""
Operator = Annotated[Principal, Depends(require(Role.OPERATE))]
Action = Literal["cancel", "replay"]

router = APIRouter(include_in_schema=False, prefix="/jobs/chosen")


@dataclass(frozen=True)
class Deed:
    """What will happen, or has happened, to one job.

    Attributes:
        job: The job.
        state: Its state as a word.
        takes_part: Whether the action can be done on it.
        says: What happens, in the reader's language.
    """

    job: Job
    state: str
    takes_part: bool
    says: str


@router.get("")
def confirm_page(
    request: Request,
    client: Client,
    _: Operator,
    action: Action = "cancel",
    ids: Annotated[list[str] | None, Query(alias="id")] = None,
    every: str = "",
) -> Response:
    """What will happen to the chosen jobs; nothing has yet."""
    chosen = [*select(client.summaries(), read_filter(request.query_params)).ids] if every else [*(ids or ())]
    jobs = client.read_many(chosen[:MOST])
    language = page_language(request)
    return _shown(request, action, [_foreseen(job, action, language) for job in jobs], left=len(chosen) - len(jobs))


@router.post("")
def act(
    request: Request,
    client: Client,
    _: Operator,
    action: Annotated[Action, Form()],
    ids: Annotated[list[str] | None, Form(alias="id")] = None,
) -> Response:
    """Do it to each; one that refuses (it ended meanwhile) says so beside the others."""
    language = page_language(request)
    jobs = client.read_many((ids or [])[:MOST])
    return _shown(request, action, [_done(client, job, action, language) for job in jobs], done=True)


def _foreseen(job: Job, action: Action, language: Language) -> Deed:
    state = state_word(language, job.shown_state)
    if action == "cancel":
        if job.finished or job.cancel_requested:
            return Deed(job, state, False, text(language, "deed_ended"))
        running = next((stage for stage in job.stages if stage.state is StageState.RUNNING), None)
        if running is None:
            return Deed(job, state, True, text(language, "deed_cancel_waiting"))
        return Deed(job, state, True, text(language, "deed_cancel_running", stage=running.name.spec.title(language)))
    if not job.finished:
        return Deed(job, state, False, text(language, "deed_runs"))
    opened = next((stage.name for stage in job.stages if stage.state is not StageState.SUCCEEDED), job.plan[0])
    return Deed(job, state, True, text(language, "deed_replay", stage=opened.spec.title(language)))


def _done(client: PackagingClient, job: Job, action: Action, language: Language) -> Deed:
    try:
        now = (client.cancel if action == "cancel" else client.replay)(job.id)
    except PackagingError as error:
        if error.error_class is ErrorClass.TRANSIENT:
            raise
        return Deed(job, state_word(language, job.shown_state), False, error.message)
    return Deed(now, state_word(language, now.shown_state), True, text(language, f"done_{action}"))


def _shown(request: Request, action: Action, deeds: Sequence[Deed], *, left: int = 0, done: bool = False) -> Response:
    context = {"action": action, "deeds": deeds, "left": left, "most": MOST, "done": done}
    context["count"] = sum(deed.takes_part for deed in deeds)
    return render(request, "chosen.html", context)

"""The pages about the service itself: workers and queues, and what operators may change there."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from api_client.client import PackagingClient
from api_client.console.auth import require
from api_client.console.context import Client
from api_client.console.identity import Principal
from api_client.console.pages.jobs import Reader
from api_client.console.pages.language import page_language
from api_client.console.pages.view import render
from api_client.console.roles import Role
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName

CHANGES = 20
Operator = Annotated[Principal, Depends(require(Role.OPERATE))]

router = APIRouter(include_in_schema=False)


@router.get("/workers")
def workers_page(request: Request, client: Client, _: Reader) -> Response:
    """Workers that are alive, and what each runs."""
    workers = sorted(client.workers(), key=lambda worker: (worker.host, worker.name))
    shown = [(worker, worker.attempts) for worker in workers]
    return render(request, "workers.html", {"workers": shown, "stages": [*StageName]})


@router.get("/queues")
def queues_page(request: Request, client: Client, _: Reader) -> Response:
    """Queues: what waits, why, and who takes from each; caps by label; who changed what."""
    return _queues(request, client)


@router.post("/queues/pause")
def set_pause(
    request: Request,
    client: Client,
    principal: Operator,
    *,
    place: Annotated[str, Form(max_length=210)],
    action: Annotated[str, Form()] = "pause",
) -> Response:
    """Pause a queue or a host, or let it go on."""
    try:
        (client.resume if action == "resume" else client.pause)(place, by=principal.name)
    except PackagingError as error:
        return _queues(request, client, error)
    return RedirectResponse("/queues", 303)


@router.post("/queues/limit")
def set_limit(
    request: Request,
    client: Client,
    principal: Operator,
    *,
    label: Annotated[str, Form(max_length=264)],
    limit: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Set a cap; an empty one goes back to what the workers were started with."""
    try:
        client.set_limit(label.strip(), _number(limit.strip()), by=principal.name)
    except PackagingError as error:
        return _queues(request, client, error)
    return RedirectResponse("/queues", 303)


def _number(text: str) -> int | None:
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise PackagingError(ErrorCode.REQUEST_INVALID, f"limit: {text!r} is no number", fields={"field": "limit"})


def _queues(request: Request, client: PackagingClient, refused: PackagingError | None = None) -> Response:
    context = {
        "queues": client.queues(),
        "limits": client.limits(),
        "pauses": client.pauses(),
        "hosts": sorted({worker.host for worker in client.workers()}),
        "changes": client.changes(CHANGES),
        "refused": refused.told(page_language(request)) if refused else None,
    }
    return render(request, "queues.html", context, 422 if refused else 200)

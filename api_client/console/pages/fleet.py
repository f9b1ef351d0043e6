"""The pages about the service itself: workers and queues."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api_client.console.context import Client
from api_client.console.pages.jobs import Reader
from api_client.console.pages.view import render
from api_client.contract.job import StageName

router = APIRouter(include_in_schema=False)


@router.get("/workers")
def workers_page(request: Request, client: Client, _: Reader) -> Response:
    """Workers that are alive, and what each runs."""
    workers = sorted(client.workers(), key=lambda worker: (worker.host, worker.name))
    shown = [(worker, worker.attempts) for worker in workers]
    return render(request, "workers.html", {"workers": shown, "stages": [*StageName]})


@router.get("/queues")
def queues_page(request: Request, client: Client, _: Reader) -> Response:
    """Queues: what waits, and who takes from each."""
    return render(request, "queues.html", {"queues": client.queues()})

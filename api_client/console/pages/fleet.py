"""The pages about the service itself: workers and queues."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api_client.console.context import Client
from api_client.console.pages.jobs import Reader
from api_client.console.pages.view import render
from api_client.contract.fleet import WorkerInfo
from api_client.contract.job import StageName

router = APIRouter(include_in_schema=False)


@router.get("/workers")
def workers_page(request: Request, client: Client, _: Reader) -> Response:
    """Workers that are alive, and what each runs."""
    workers = sorted(client.workers(), key=lambda worker: (worker.host, worker.name))
    shown = [(worker, running(worker)) for worker in workers]
    return render(request, "workers.html", {"workers": shown, "stages": [*StageName]})


@router.get("/queues")
def queues_page(request: Request, client: Client, _: Reader) -> Response:
    """Queues: what waits, and who takes from each."""
    return render(request, "queues.html", {"queues": client.queues()})


def running(worker: WorkerInfo) -> list[tuple[str, str, str]]:
    """Job, stage and attempt of what a worker runs."""
    found = []
    for name in worker.running:
        job_id, _, rest = name.partition(":")
        stage, _, attempt = rest.partition(":")
        found.append((job_id, stage, attempt))
    return found

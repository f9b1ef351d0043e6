"""The service: its workers, its queues, its Redis."""

from __future__ import annotations

from fastapi import APIRouter, Request

from api_client.console.api.documents import COMMON_ERRORS, Health, QueueList, ServiceHealth, WorkerList
from api_client.console.api.parameters import Reader
from api_client.console.context import Client
from api_client.console.limits import StreamLimit
from api_client.contract.errors import ErrorCode, PackagingError

router = APIRouter(tags=["service"])
open_router = APIRouter(tags=["service"])


@router.get("/workers")
def list_workers(client: Client, _: Reader) -> WorkerList:
    """List the workers that are heard from."""
    return WorkerList(workers=tuple(client.workers()))


@router.get("/queues")
def list_queues(client: Client, _: Reader) -> QueueList:
    """List the queues, with what waits in them."""
    return QueueList(queues=tuple(client.queues()))


@router.get("/health")
def get_service_health(request: Request, client: Client, _: Reader) -> ServiceHealth:
    """How Redis is set, how many workers there are, how many event streams are open."""
    streams: StreamLimit = request.app.state.streams
    info = client.ping()
    return ServiceHealth(redis=info, warnings=info.warnings, workers=len(client.workers()), event_streams=streams.open)


@open_router.get("/health", responses={status: COMMON_ERRORS[status] for status in (429, 503)})
def get_health(client: Client) -> Health:
    """Whether the console reaches Redis, and Redis takes writes. Needs no token and says nothing else."""
    try:
        client.check_writes()
    except PackagingError as error:
        if error.code is ErrorCode.REDIS_NO_WRITES:
            raise PackagingError(ErrorCode.REDIS_NO_WRITES, "Redis takes no writes") from error
        raise PackagingError(ErrorCode.REDIS_UNREACHABLE, "Redis does not answer") from error
    return Health()


@open_router.get("/health/live", responses={429: COMMON_ERRORS[429]})
def get_liveness() -> Health:
    """Whether the console itself answers. Needs no token."""
    return Health()

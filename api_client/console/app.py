"""The application: settings and client in, ASGI out. ``gate`` sees every request first, then a route answers it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from api_client.client import PackagingClient
from api_client.connection import open_client
from api_client.console import api, login, metrics
from api_client.console.admission import Admission
from api_client.console.api.fleet import open_router
from api_client.console.context import open_context
from api_client.console.gate import Gate
from api_client.console.problems import on_error
from api_client.console.settings import ConsoleSettings
from api_client.contract.errors import PackagingError

PAGES = "api_client.console.pages"
STATIC = Path(__file__).parent / "pages" / "static"
_DESCRIPTION = """
A thin front of `PackagingClient`: the models are those of the Python package `api_client`.

Send a token as `Authorization: Bearer TOKEN`. Roles: `read` sees everything, `submit` also submits, cancels, replays
one job and asks about files on the workers, `operate` also replays many at once, sets
caps by label and pauses queues and hosts.

Every error has the body `{"error": {"code", "message", "remedy", "fields"}}`; the codes are those of the command line.
`Accept-Language: zh` gives remedies in Chinese.
"""
ClientFactory = Callable[[ConsoleSettings], PackagingClient]


def open_console_client(settings: ConsoleSettings) -> PackagingClient:
    """The client of a console: the service that the environment names, else the running embedded stack."""
    return open_client(timeout_s=settings.redis_timeout_s)


def create_app(settings: ConsoleSettings, client_factory: ClientFactory = open_console_client) -> FastAPI:
    """Build the application.

    Args:
        settings: From ``load_console_settings``.
        client_factory: Makes the one client that all requests share; it is closed when the application stops.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_context(app, settings, client_factory(settings)):
            yield

    app = FastAPI(
        title="trainpack",
        summary="Turns finished training runs into GGUF files.",
        description=_DESCRIPTION,
        version=_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{api.PREFIX}/openapi.json",
        lifespan=lifespan,
        generate_unique_id_function=operation_id,
    )
    app.state.settings = settings
    app.state.admission = Admission(settings)
    app.state.stopping = threading.Event()
    for kind in (PackagingError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, on_error)
    app.include_router(api.router)
    app.include_router(open_router)
    app.include_router(metrics.router)
    app.include_router(login.router)
    _add_pages(app)
    app.add_middleware(Gate, admission=app.state.admission, max_body_bytes=settings.max_body_bytes)
    return app


def operation_id(route: APIRoute) -> str:
    """What generated clients call a route: the name of its function, e.g. ``submit_job``."""
    return route.name


def _version() -> str:
    try:
        return version("trainpack")
    except PackageNotFoundError:
        return "0"


def _add_pages(app: FastAPI) -> None:
    """The pages: their ``router``, and ``error_page(request, error, status)``, the errors that browsers are shown."""
    pages = importlib.import_module(PAGES)
    if not hasattr(pages, "router"):
        return
    app.include_router(pages.router)
    app.state.error_page = pages.error_page
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

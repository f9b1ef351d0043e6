"""What routes share, as dependencies. All of it lives as long as the application; ``open_context`` makes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Request

from api_client.client import PackagingClient
from api_client.console.limits import StreamLimit
from api_client.console.links import Links
from api_client.console.settings import ConsoleSettings
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.asking import QuestionKind
from api_client.ledger.questions import Questions

QUESTIONS_AT_ONCE = 8
"""Each waits for a worker in a thread of its own, of the forty that routes share."""
STREAM_READERS = 8
"""Threads that read for all event streams; they never wait for entries."""


class BoundedQuestions(Questions):
    """Questions to workers, so many at once that other requests find a thread."""

    def __init__(self, client: PackagingClient, timeout_s: float) -> None:
        super().__init__(client, timeout_s)
        self._free = threading.BoundedSemaphore(QUESTIONS_AT_ONCE)

    def _ask(self, kind: QuestionKind, parameters: Mapping[str, str]) -> dict[str, Any]:
        if not self._free.acquire(blocking=False):
            raise PackagingError(
                ErrorCode.RATE_LIMITED,
                f"{QUESTIONS_AT_ONCE} questions about files wait for workers already",
                fields={"most": QUESTIONS_AT_ONCE, "retry_after_s": 5},
            )
        try:
            return super()._ask(kind, parameters)
        finally:
            self._free.release()


@contextmanager
def open_context(app: FastAPI, settings: ConsoleSettings, client: PackagingClient) -> Iterator[None]:
    """Make what routes share, and close it."""
    app.state.client = client
    app.state.questions = BoundedQuestions(client, settings.question_timeout_s)
    app.state.links = Links(settings.s3_public_endpoint_url, settings.link_s)
    app.state.streams = StreamLimit(settings.max_streams, settings.max_streams_each)
    app.state.readers = anyio.CapacityLimiter(STREAM_READERS)
    try:
        yield
    finally:
        client.close()


def get_settings(request: Request) -> ConsoleSettings:
    """The console's settings."""
    settings: ConsoleSettings = request.app.state.settings
    return settings


def get_client(request: Request) -> PackagingClient:
    """The one client of this console; it is synchronous and thread-safe, so use it from ``def`` routes."""
    client: PackagingClient = request.app.state.client
    return client


def get_questions(request: Request) -> Questions:
    """Questions to workers; they wait for an answer, so ask them from ``def`` routes."""
    questions: Questions = request.app.state.questions
    return questions


def get_links(request: Request) -> Links:
    """Download links for uploaded files."""
    links: Links = request.app.state.links
    return links


Settings = Annotated[ConsoleSettings, Depends(get_settings)]
Client = Annotated[PackagingClient, Depends(get_client)]
AskWorkers = Annotated[Questions, Depends(get_questions)]
DownloadLinks = Annotated[Links, Depends(get_links)]

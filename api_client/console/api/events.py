"""A job's log: as a page, and as server-sent events that go on until the job has ended.

A stream costs no thread while it waits: it reads what there is, then sleeps. It can be resumed with the id of the last
entry seen (``Last-Event-ID``, which browsers send by themselves). It ends with an event ``end``; one that Redis broke
off with ``problem``. When the reader has gone, Starlette cancels the generator.

FastAPI's own streaming of events is not used: in 0.165 a reader that leaves at the wrong moment makes it log an error.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from api_client.client import PackagingClient
from api_client.console.admission import caller_of
from api_client.console.api.documents import COMMON_ERRORS, NO_JOB, EventPage, as_json
from api_client.console.api.parameters import EVENT_ID, JobId, Reader
from api_client.console.api.told import ReaderLanguage, told_event
from api_client.console.context import Client
from api_client.console.language import accepted_language
from api_client.console.limits import StreamLimit
from api_client.console.problems import plain
from api_client.contract.errors import PackagingError
from api_client.contract.events import Event, EventKind
from api_client.contract.job import FINISHED_STATES, JobState
from api_client.words.language import Language

router = APIRouter(tags=["events"])

PAGE = 200
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
"""Pause of a stream after an empty read; it doubles while nothing comes."""
HEARTBEAT_S = 15.0
"""Longest silence before a comment is sent; proxies close what is silent for a minute."""
_START = "0"

AfterQuery = Annotated[
    str | None, Query(description="Id of the last entry already seen.", pattern=EVENT_ID, examples=["1769860800000-0"])
]


@router.get("/jobs/{job_id}/events", responses=NO_JOB)
def read_events(
    job_id: JobId,
    client: Client,
    _: Reader,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    *,
    language: ReaderLanguage,
) -> EventPage:
    """Read a page of a job's log; messages are in the language of `Accept-Language`, as far as they are known there."""
    state, events = read_page(client, job_id, after or _START, limit)
    return EventPage(
        events=tuple(told_event(event, language) for event in events),
        next_after=events[-1].id if events else after or _START,
        state=state,
    )


def read_page(client: PackagingClient, job_id: str, after: str, limit: int) -> tuple[JobState, list[Event]]:
    """The job's state, and the entries that follow.

    The mark of a cut log has the id of the entry that comes next, so it comes in addition to ``limit``.

    Raises:
        PackagingError: ``job_not_found``.
    """
    state = client.state(job_id)
    events = [*itertools.islice(client.events(job_id, after=after), limit + 1)]
    marked = bool(events) and events[0].kind is EventKind.TRUNCATED
    return state, events[: limit + 1 if marked else limit]


async def hold_stream(request: Request, principal: Reader, job_id: JobId, client: Client) -> AsyncIterator[None]:
    """One of the streams that may be open, for as long as the answer takes. Refuses before the answer has begun."""
    streams: StreamLimit = request.app.state.streams
    with streams.one(caller_of(request, principal)):
        await run_sync(client.state, job_id, limiter=request.app.state.readers)
        yield


_MESSAGE = {
    "type": "object",
    "description": "One message. The last one is `end`, or `problem` where Redis went away.",
    "properties": {
        "event": {"type": "string", "enum": ["message", "end", "problem"]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["data"],
}


class EventStream(StreamingResponse):
    """An answer of server-sent events."""

    media_type = "text/event-stream"


@router.get(
    "/jobs/{job_id}/events/stream",
    response_class=EventStream,
    responses={200: {"content": {EventStream.media_type: {"schema": _MESSAGE}}}, **as_json(COMMON_ERRORS | NO_JOB)},
    dependencies=[Depends(hold_stream)],
)
async def follow_events(
    request: Request,
    job_id: JobId,
    client: Client,
    _: Reader,
    *,
    after: AfterQuery = None,
    last_event_id: Annotated[
        str | None, Header(description="As `after`; browsers send it when they reconnect.", pattern=EVENT_ID)
    ] = None,
    lang: Annotated[Language | None, Query(description="Language of messages; else that of `Accept-Language`.")] = None,
) -> EventStream:
    """Follow a job's log until it has ended: one message per entry, then an event `end` with the job's state."""

    async def read(position: str) -> tuple[JobState, list[Event]]:
        return await run_sync(read_page, client, job_id, position, PAGE, limiter=request.app.state.readers)

    language = lang or accepted_language(request.headers.get("accept-language", ""))
    content = stream(read, last_event_id or after or _START, request.app.state.stopping, language)
    # X-Accel-Buffering: nginx would keep the entries back.
    return EventStream(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def stream(
    read: Callable[[str], Awaitable[tuple[JobState, list[Event]]]],
    position: str,
    stopping: threading.Event,
    language: Language = Language.EN,
) -> AsyncIterator[bytes]:
    """The bytes of an event stream.

    Args:
        read: Gives the job's state and the entries after a position, without waiting for any.
        position: Id of the last entry already seen.
        stopping: Ends the stream.
        language: In which a problem is told.
    """
    pause_s, spoke_at = FIRST_PAUSE_S, time.monotonic()
    while not stopping.is_set():
        try:
            state, events = await read(position)
        except PackagingError as error:
            yield format_sse_event(event="problem", data_str=json.dumps(plain(error.told(language).document())))
            return
        if events:
            yield b"".join(_message(told_event(event, language)) for event in events)
            position, pause_s, spoke_at = events[-1].id, FIRST_PAUSE_S, time.monotonic()
            continue
        if state in FINISHED_STATES:
            yield format_sse_event(event="end", data_str=json.dumps({"state": state.value}))
            return
        if time.monotonic() - spoke_at >= HEARTBEAT_S:
            yield format_sse_event(comment="nothing new")
            spoke_at = time.monotonic()
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _message(event: Event) -> bytes:
    """An entry; a mark carries no id, for whoever resumes after it must still get the entry it precedes."""
    marks = event.kind is EventKind.TRUNCATED
    return format_sse_event(data_str=event.model_dump_json(), id=None if marks else event.id)

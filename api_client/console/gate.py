"""What every request passes before any route: ``admission``, a bound on its body; and the headers of every answer.

Plain ASGI, so that it holds for pages, the API and static files alike, and so that a body is bounded whether its
length is announced or it comes in chunks. Routes find who asks in ``request.state.identity``.
"""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_client.console.admission import Admission
from api_client.console.problems import on_error
from api_client.contract.errors import ErrorCode, PackagingError

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer: no inline script or style, nothing from elsewhere, no frame."""


class CallerGone(Exception):
    """The caller closed the connection before its body was complete."""


class Gate:
    """Middleware around the whole application."""

    def __init__(self, app: ASGIApp, admission: Admission, max_body_bytes: int) -> None:
        self._app = app
        self._admission = admission
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on; an error that no route handled ends here too."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, answer = Request(scope), _Answer(send)
        try:
            request.state.identity = self._admission.admit(request)
            receive = await read_body(scope, receive, self._max_body_bytes)
            await self._app(scope, receive, answer.send)
        except CallerGone:
            return
        except Exception as error:
            if answer.started:
                raise
            await (await on_error(request, error))(scope, receive, answer.send)


class _Answer:
    """The way back, which adds the headers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)


async def read_body(scope: Scope, receive: Receive, most_bytes: int) -> Receive:
    """Read the body, which no route needs in parts.

    Returns:
        A ``receive`` that gives the body at once, and after it what the server says.

    Raises:
        PackagingError: ``request_too_large``.
        CallerGone: the connection was closed before.
    """
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isdecimal() and int(announced) > most_bytes:
        raise _too_large(most_bytes)
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    waiting: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _too_large(most_bytes: int) -> PackagingError:
    return PackagingError(
        ErrorCode.REQUEST_TOO_LARGE, f"the body is larger than {most_bytes} bytes", fields={"most_bytes": most_bytes}
    )

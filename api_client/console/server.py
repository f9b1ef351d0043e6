"""Running the application: one process, its own socket, streams that end when the console is told to stop."""

from __future__ import annotations

import errno
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from api_client.console.receiving import Connections, bounded
from api_client.console.settings import PREFIX, ConsoleSettings
from api_client.contract.errors import ErrorCode, PackagingError

STOP_S = 5
"""Longest wait for answers that are under way; event streams end within a second."""
_KEEP_ALIVE_S = 30
_BACKLOG = 512


class Console(uvicorn.Server):
    """The server of one application."""

    def __init__(self, settings: ConsoleSettings, app: FastAPI) -> None:
        self._app = app
        super().__init__(
            uvicorn.Config(
                self._app,
                log_config=None,
                http=bounded(Connections.of(settings)),
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_S,
                lifespan="on",
                ws="none",
            )
        )

    def handle_exit(self, *_: Any) -> None:
        """Stop on a signal; event streams are told first, for they would not end by themselves. Twice: at once."""
        self._app.state.stopping.set()
        self.force_exit = self.should_exit
        self.should_exit = True


def open_socket(settings: ConsoleSettings) -> socket.socket:
    """Listen on the address of the settings.

    Raises:
        PackagingError: ``service_start_failed`` where the port is taken or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "the port is taken" if taken else (error.strerror or str(error))
        raise PackagingError(
            ErrorCode.SERVICE_START_FAILED,
            f"the console cannot listen on {settings.host}:{settings.port}: {reason}",
            remedy=f"Give another port: --port, or {PREFIX}PORT; 0 takes a free one."
            if taken
            else f"Give an address of this machine: --host, or {PREFIX}HOST.",
            fields={"host": settings.host, "port": settings.port},
        ) from error
    # Inherited by every connection. Asyncio sets it by itself only where it has made the socket, and without it each
    # answer on a kept connection waits 40 ms for the acknowledgement of its first part.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    """Address for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

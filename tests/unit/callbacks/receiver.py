"""A real HTTP server that keeps what it gets and answers as told."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Got:
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """``answers`` holds the statuses to give, one after the other; after them 200."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: list[int] = []
        self.open = threading.Event()
        """Cleared: requests are taken and not answered."""
        self.open.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.got.append(Got(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                owner.open.wait(30)
                status = owner.answers.pop(0) if owner.answers else 200
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", owner.url("/elsewhere"))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # Senders that hang up are what these tests are about.

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        return self._server.server_port

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

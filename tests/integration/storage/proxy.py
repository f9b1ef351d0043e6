"""A real HTTP proxy before the storage that can fail in chosen ways, and counts what passes."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Fault:
    """What goes wrong with requests of one method whose path and query contain a text.

    ``kind``: ``status`` (answered with ``value``), ``drop`` (connection closed), ``hang`` (no answer until the proxy
    ends), ``cut_request`` (half the body taken, then closed), ``flip_request``, ``flip_answer`` (one byte of the body
    changed), ``cut_answer`` (half the body, then closed), ``answer_header`` (``value`` = (name, text or None to leave
    it out)), ``answer`` (``value`` = (status, headers, body), sent in place of the storage's).
    """

    kind: str
    method: str
    text: str = ""
    value: Any = None
    times: int = 1_000_000


@dataclass
class Proxy:
    port: int
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, method: str, text: str = "") -> int:
        return sum(1 for each in self.seen if each[0] == method and text in each[1])

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and fault.text in path:
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        fault = self.proxy.take(self.command, self.path) or Fault("none", self.command)
        body = self.read_body(half=fault.kind == "cut_request")
        if fault.kind in ("drop", "cut_request"):
            self.close_connection = True
            return
        if fault.kind == "hang":
            self.proxy.ending.wait(30)
            self.close_connection = True
            return
        if fault.kind == "status":
            self.answer(fault.value, {}, b"")
            return
        if fault.kind == "answer":
            self.answer(*fault.value)
            return
        if fault.kind == "flip_request":
            body = flip(body)
        self.answer(*self.forward(body), fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - names the server looks for

    def read_body(self, half: bool = False) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length // 2 if half else length)

    def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return answer

    def answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        kind = fault.kind if fault else ""
        if fault is not None and kind == "answer_header":
            name, text = fault.value
            headers = {key: value for key, value in headers.items() if key.lower() != name.lower()}
            headers |= {name: text} if text is not None else {}
        if kind == "flip_answer":
            body = flip(body)
        self.send_response_only(status)
        length = headers.get("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if kind == "cut_answer":
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def flip(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


@contextmanager
def proxy_before(upstream: str) -> Iterator[Proxy]:
    class BoundHandler(Handler):
        """Answers for one proxy."""

    server = QuietServer(("127.0.0.1", 0), BoundHandler)
    proxy = BoundHandler.proxy = Proxy(server.server_address[1], upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()

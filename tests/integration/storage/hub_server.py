"""A small Hub: one model at one commit, served as huggingface.co does, that can fail in chosen ways."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.status: dict[str, tuple[int, str]] = {}
        """Status to answer with, by a text in the path."""
        self.damaged: set[str] = set()
        """Names of files that arrive with other bytes."""

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            sibling = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.hub.seen.append((self.command, self.path))
        for text, (status, code) in self.hub.status.items():
            if text in self.path:
                return self.answer(status, b"{}", {"X-Error-Code": code})
        if re.match(r"/api/models/owner/tiny(/revision/(main|v1|0123[0-9a-f]{36}))?(\?|$)", self.path):
            return self.answer(200, json.dumps(self.hub.info()).encode(), {"Content-Type": "application/json"})
        found = re.fullmatch(rf"/owner/tiny/resolve/{COMMIT}/(.+)", self.path)
        if found and found[1] in self.hub.files:
            return self.file(found[1])
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - the name the server looks for

    def file(self, name: str) -> None:
        data = self.hub.files[name]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"'}
        headers["X-Linked-Size"] = str(len(data))
        if name in self.hub.damaged:
            data = b"\0" * len(data)
        self.answer(200, data, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub_server() -> Iterator[Hub]:
    class BoundHandler(Handler):
        """Answers for one hub."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
    server.daemon_threads = True
    hub = BoundHandler.hub = Hub(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

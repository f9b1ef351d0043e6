"""A small Hub: one model at one commit, served as huggingface.co does and written to as its client does, that can fail
in chosen ways."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_tests"
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
        self.exists = True
        self.private: bool | None = None
        """As the repository was made; ``None`` where nobody has made it."""
        self.large: dict[str, bytes] = {}
        """What was sent for later commits, by SHA-256."""
        self.commits: list[dict[str, bytes]] = []

    def take_commit(self, lines: bytes) -> str:
        """A commit in the Hub's own form, a line of JSON each; its id."""
        new: dict[str, bytes] = {}
        for line in map(json.loads, lines.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                new[value["path"]] = self.large[value["oid"]]
        self.commits.append(new)
        self.files |= new
        return hashlib.sha1(lines).hexdigest()

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as Git names it
            sibling = {"rfilename": name, "size": len(data), "blobId": blob}
            if is_large(name):
                digest = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        about = {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "private": bool(self.private)}
        return about | {"siblings": siblings}


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.hub.seen.append((self.command, self.path))
        for text, (status, code) in self.hub.status.items():
            if text in self.path:
                return self.answer(status, b"{}", {"X-Error-Code": code})
        if self.path == "/api/whoami-v2":
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer(401, b"{}", {})
            return self.json({"type": "user", "name": "somebody", "orgs": [{"name": "owner"}]})
        if self.hub.exists and re.match(
            r"/api/models/owner/tiny(/revision/(main|v1|0123[0-9a-f]{36}))?(\?|$)", self.path
        ):
            return self.answer(200, json.dumps(self.hub.info()).encode(), {"Content-Type": "application/json"})
        found = re.fullmatch(rf"/owner/tiny/resolve/{COMMIT}/(.+)", self.path)
        if found and found[1] in self.hub.files:
            return self.file(found[1])
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - the name the server looks for

    def do_POST(self) -> None:
        self.hub.seen.append((self.command, self.path))
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        for text, (status, code) in self.hub.status.items():
            if text in self.path:
                return self.answer(status, b"{}", {"X-Error-Code": code})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, b"{}", {})
        if self.path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            if self.hub.exists:
                return self.answer(409, json.dumps({"url": f"{self.hub.url}/owner/tiny"}).encode(), {})
            made = json.loads(body)  # older clients say it the first way
            self.hub.exists, self.hub.private = True, made.get("private", made.get("visibility") == "private")
            return self.json({"url": f"{self.hub.url}/owner/tiny"})
        if self.path.startswith("/api/models/owner/tiny/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ("lfs" if is_large(name) else "regular" for name in names)
            files = [
                {"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in zip(names, modes, strict=True)
            ]
            return self.json({"files": files})
        if self.path == "/owner/tiny.git/info/lfs/objects/batch":
            return self.json({"objects": [self.batch(item) for item in json.loads(body)["objects"]]})
        if self.path.startswith("/api/models/owner/tiny/commit/main"):
            commit = self.hub.take_commit(body)
            return self.json({"commitUrl": f"{self.hub.url}/owner/tiny/commit/{commit}", "commitOid": commit})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def do_PUT(self) -> None:
        self.hub.seen.append((self.command, self.path))
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.large[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, b"", {})

    def batch(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.hub.large:
            return item
        return item | {"actions": {"upload": {"href": f"{self.hub.url}/large/{item['oid']}"}}}

    def json(self, content: dict[str, Any]) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

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

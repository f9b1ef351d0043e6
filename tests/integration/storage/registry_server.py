"""A real OCI registry, Debian's docker-registry, for the time of a test."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.waiting import eventually
from worker.storage.registry import MANIFEST_TYPE

USER, PASSWORD = "somebody", "let-me-in"
_HTPASSWD = f"{USER}:$2b$04$McWlmrcICFkZdfLrHc39rO2bwiZqYKpkz2LoPvHvx5sw9UGAq7T/W\n"


@dataclass
class RunningRegistry:
    """Where it is, and what it holds."""

    host: str
    asks_who: bool

    def get(self, path: str) -> bytes:
        asked = urllib.request.Request(f"http://{self.host}/v2/{path}", headers={"Accept": f"{MANIFEST_TYPE}, */*"})
        if self.asks_who:
            asked.add_header("Authorization", f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}")
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return bytes(answer.read())

    def tags(self, name: str) -> list[str]:
        return sorted(json.loads(self.get(f"{name}/tags/list"))["tags"])

    def manifest(self, name: str, tag: str) -> dict[str, Any]:
        return dict(json.loads(self.get(f"{name}/manifests/{tag}")))

    def blob(self, name: str, digest: str) -> bytes:
        return self.get(f"{name}/blobs/{digest}")


def login(directory: Path, host: str) -> None:
    """What ``docker login`` writes."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@contextmanager
def oci_registry(directory: Path, *, asks_who: bool = False) -> Iterator[RunningRegistry]:
    """The server, with its files in a directory; skips where there is none, but in CI, which installs it."""
    program = shutil.which("docker-registry")
    if program is None and not os.environ.get("CI"):
        pytest.skip("docker-registry is not installed")
    assert program is not None, "CI installs docker-registry"
    host = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": host},
    }
    if asks_who:
        (directory / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    (directory / "config.yml").write_text(json.dumps(config))  # YAML, too
    with (directory / "registry.log").open("wb") as log:
        server = subprocess.Popen([program, "serve", str(directory / "config.yml")], stdout=log, stderr=log)
    try:
        registry = RunningRegistry(host, asks_who)
        eventually(lambda: _answers(registry), "the registry answers")
        yield registry
    finally:
        server.kill()
        server.wait()


def _answers(registry: RunningRegistry) -> bool:
    try:
        registry.get("")
    except OSError:
        return False
    return True

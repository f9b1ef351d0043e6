"""A console on a free port, in a thread of the tests, as `trainpack console` runs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from api_client.client import PackagingClient
from api_client.console.app import create_app
from api_client.console.server import Console, open_socket, url_of
from api_client.console.settings import ConsoleSettings, load_console_settings
from tests.integration.harness import BOUND_S, eventually

SECRETS = {role: f"{role}-0123456789abcdef" for role in ("read", "submit", "operate")}
TOKENS = [{"name": f"the-{role}", "role": role, "secret": secret} for role, secret in SECRETS.items()]


@dataclass
class RunningConsole:
    """A console, and clients for it."""

    url: str
    settings: ConsoleSettings
    server: Console
    app: Any

    def client(self, role: str | None = "operate", **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {SECRETS[role]}"} if role else {}
        longest_s = BOUND_S + self.settings.question_timeout_s  # so that it is the console that gives up
        return httpx.Client(base_url=self.url, headers=headers, timeout=longest_s, **options)


@contextmanager
def running_console(redis_url: str, prefix: str, **settings: Any) -> Iterator[RunningConsole]:
    """Serve until left; the thread must end then."""
    values = {
        "port": 0,
        "tokens": TOKENS,
        "requests_per_minute": 100_000,
        "failed_logins_per_minute": 100_000,
    } | settings
    found = load_console_settings({}, **values)
    timeout_s = found.redis_timeout_s
    app = create_app(found, lambda _: PackagingClient(redis_url, key_prefix=prefix, timeout_s=timeout_s))
    with open_socket(found) as listener:
        server = Console(found, app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="console")
        thread.start()
        try:
            eventually(lambda: server.started, "console started")
            yield RunningConsole(url_of(listener), found, server, app)
        finally:
            server.handle_exit()
            thread.join(BOUND_S)
            assert not thread.is_alive(), "the console did not stop"


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    event: str
    id: str
    data: Any


def messages(response: httpx.Response) -> Generator[Message]:
    """Server-sent events of an answer, comments left out."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if not line and "data" in fields:
            yield Message(fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"]))
        if not line:
            fields = {}
            continue
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.console.running import RunningConsole, running_console
from tests.integration.harness import Installation

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

BOUND_MS = 60_000
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser. Without one the tests skip, in CI they fail."""
    program = Path(os.environ.get("TRAINPACK_CHROMIUM") or "/usr/bin/chromium")
    if not program.is_file():
        reason = f"no Chromium at {program}; set TRAINPACK_CHROMIUM"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS], timeout=BOUND_MS)
        yield browser
        browser.close()


class Windows:
    """Browser windows, each with cookies of its own. What their consoles complain of fails the test.

    A test names its console's fixture first, so that the windows are closed before the console.
    """

    def __init__(self, chromium: Browser) -> None:
        self._chromium = chromium
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    def open(self, url: str, **options: Any) -> Page:
        settings = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}, "base_url": url} | options
        context = self._chromium.new_context(**settings)
        context.set_default_timeout(BOUND_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"a script ran: {dialog.message}"))
        page.on("console", self._hear)
        return page

    def _hear(self, message: Any) -> None:
        # a refused answer is reported as an error too; the tests look at those themselves
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            self.complaints.append(message.text)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def windows(chromium: Browser) -> Iterator[Windows]:
    opened = Windows(chromium)
    yield opened
    opened.close()
    assert opened.complaints == []


@pytest.fixture
def service(valkey: str, tmp_path: Path) -> Iterator[Installation]:
    """A service whose jobs wait: it has no worker."""
    installation = Installation(valkey, tmp_path)
    yield installation
    installation.close()


@pytest.fixture
def idle(service: Installation) -> Iterator[RunningConsole]:
    """A console without login, on that service."""
    with running_console(service.url, service.prefix, tokens=()) as console:
        yield console


@pytest.fixture
def guarded(service: Installation) -> Iterator[RunningConsole]:
    """A console with tokens, on that service."""
    with running_console(service.url, service.prefix) as console:
        yield console

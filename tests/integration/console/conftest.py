from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.integration.console.running import RunningConsole, running_console
from tests.integration.faults.conftest import own_server  # noqa: F401  # a fixture
from tests.integration.harness import Installation


@pytest.fixture(scope="session")
def _shared_console(_shared: Installation) -> Iterator[RunningConsole]:
    with running_console(_shared.url, _shared.prefix) as console:
        yield console


@pytest.fixture
def console(_shared_console: RunningConsole, running: Installation) -> RunningConsole:
    """A console with a worker of small stages, which many tests use."""
    return _shared_console


@pytest.fixture
def http(console: RunningConsole) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    with console.client() as client:
        yield client

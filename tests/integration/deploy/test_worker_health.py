"""``python -m worker.health`` as probes call it, against a real worker: alive, stopped, gone; and Redis away."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.harness import ROOT, Installation, eventually

pytestmark = pytest.mark.integration


def health(service: Installation, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.health", *options]
    environment = service.environment(**settings)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.short_lease
def test_a_worker_is_healthy_until_it_stops_beating(service: Installation) -> None:
    assert health(service).returncode == 1, "none has started"
    worker = service.start_worker()
    found = health(service, "--pid", str(worker.pid))
    assert (found.returncode, found.stdout.split(":")[0]) == (0, "alive"), found.stderr
    assert health(service, "--liveness").returncode == 0
    assert health(service, host_name="elsewhere").returncode == 1, "another host's worker says nothing of this one"

    worker.signal(signal.SIGSTOP)
    eventually(lambda: health(service).returncode == 1, "a stopped worker is unhealthy")
    assert health(service, "--liveness").returncode == 1, "Redis answers, so a silent worker is dead"
    worker.signal(signal.SIGCONT)
    eventually(lambda: health(service).returncode == 0, "it beats again")

    worker.kill()
    gone = health(service)
    assert gone.returncode == 1, "its record may still be there, its process is not"
    assert "was heard from" in gone.stderr


def test_redis_away_is_unhealthy_but_no_reason_to_restart(service: Installation) -> None:
    away = "redis://:a-secret@127.0.0.1:1/0"
    found = health(service, redis_url=away)
    assert found.returncode == 1
    assert "a-secret" not in found.stderr
    assert health(service, "--liveness", redis_url=away).returncode == 0


def test_settings_that_do_not_fit_are_told(service: Installation) -> None:
    assert health(service, "--liveness", lease_s=0.1).returncode == 2

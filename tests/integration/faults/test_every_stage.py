"""Every fault meets every stage at once: six jobs, each held in the middle of another stage, and one fault for all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from api_client import AttemptOutcome, Job, JobState
from api_client.ledger.messages import queue_keys, transport_options
from tests.integration.faults.conftest import OwnServer
from tests.integration.faults.test_machines import fork_server
from tests.integration.harness import Installation, eventually, is_alive, outcomes

PLAN = ("prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish")
SIX: dict[str, Any] = {"slots": len(PLAN)}
TWO_RUNS = 2

OK = AttemptOutcome.SUCCEEDED
CRASHED, RESCUED, RETRIED = AttemptOutcome.CRASHED, AttemptOutcome.RESCUED, AttemptOutcome.RETRIED
FAILED, HANDED_BACK = AttemptOutcome.FAILED, AttemptOutcome.HANDED_BACK


def spread(service: Installation, behaviour: str = "hold:deaf") -> dict[str, Job]:
    """One job held in each stage."""
    jobs = {stage: service.submit(stage, labels={stage: behaviour}) for stage in PLAN}
    held(service)
    return jobs


def held(service: Installation, attempt: int = 1) -> None:
    for stage in PLAN:
        service.held(stage, attempt, output=stage)


def let_go(service: Installation) -> None:
    for stage in PLAN:
        service.let_go(stage, output=stage)


def assert_ended_well(service: Installation, jobs: dict[str, Job], expected: list[AttemptOutcome]) -> None:
    """Each job succeeded with whole outputs; its own stage had these attempts, and no stage ended its work twice."""
    for stage, job in jobs.items():
        done = service.wait(job, 60)
        service.assert_settled(done, stage)
        assert {name: outcomes(done, name) for name in PLAN} == {name: [OK] for name in PLAN} | {stage: expected}
        ends = [line.split()[1] for line in service.runs(stage) if line.startswith("end")]
        assert ends == list(PLAN)


def pids(service: Installation) -> list[int]:
    return [service.stage_pid(stage, output=stage) for stage in PLAN]


@pytest.mark.fault("kill -9 of the stage's process, in its middle")
def test_the_processes_of_all_stages_are_killed(service: Installation) -> None:
    service.start_worker(**SIX)
    jobs = spread(service)
    for pid in pids(service):
        os.kill(pid, signal.SIGKILL)
    held(service, TWO_RUNS)
    let_go(service)
    assert_ended_well(service, jobs, [CRASHED, OK])


@pytest.mark.fault("kill -9 of the worker, in the middle of the stage")
@pytest.mark.short_lease
def test_the_worker_of_all_stages_is_killed(service: Installation) -> None:
    worker = service.start_worker(**SIX)
    jobs = spread(service)
    service.start_worker(**SIX)  # Both reap; one rescues.
    service.start_worker(**SIX)
    old = pids(service)
    worker.kill()
    held(service, TWO_RUNS)
    eventually(lambda: not any(map(is_alive, old)), "its stages ended with it")
    let_go(service)
    assert_ended_well(service, jobs, [RESCUED, OK])


@pytest.mark.fault("kill -9 of the fork server")
def test_the_fork_server_of_all_stages_is_killed(service: Installation) -> None:
    worker = service.start_worker(**SIX)
    jobs = spread(service)
    fork_server(worker).kill()
    held(service, TWO_RUNS)
    let_go(service)
    assert_ended_well(service, jobs, [CRASHED, OK])


@pytest.mark.fault("SIGSTOP of the worker past its lease, then SIGCONT")
@pytest.mark.short_lease
def test_the_worker_of_all_stages_is_a_zombie(service: Installation) -> None:
    zombie = service.start_worker(**SIX)
    jobs = spread(service)
    service.start_worker(**SIX)
    zombie.signal(signal.SIGSTOP)
    held(service, TWO_RUNS)
    let_go(service)
    zombie.signal(signal.SIGCONT)
    assert_ended_well(service, jobs, [RESCUED, OK])
    eventually(lambda: zombie.lines.count('"lease_lost"') == len(PLAN), "the zombie sees that it lost")


@pytest.mark.fault("SIGTERM to the worker (drain)")
def test_the_worker_of_all_stages_is_drained(service: Installation) -> None:
    worker = service.start_worker(**SIX)
    jobs = spread(service, "hold")
    assert worker.stop() == 0
    service.start_worker(**SIX)
    held(service, TWO_RUNS)
    let_go(service)
    assert_ended_well(service, jobs, [HANDED_BACK, OK])


@pytest.mark.fault("cancel")
def test_all_stages_are_cancelled(service: Installation) -> None:
    service.start_worker(**SIX)
    jobs = spread(service)
    for job in jobs.values():
        service.client.cancel(job.id)
    for stage, job in jobs.items():
        done = service.wait(job)
        assert done.state is JobState.CANCELLED
        assert outcomes(done, stage) == [AttemptOutcome.CANCELLED]
        scratch = service.path(f".trainpack-{job.id}", stage)
        assert not (scratch / f"{stage}.partial").exists(), "no partial file is left"
    eventually(lambda: not any(map(is_alive, pids(service))), "their processes are gone")


@pytest.mark.fault("Valkey killed and restarted with its append-only file")
def test_the_server_is_killed_in_all_stages(own_server: OwnServer, own_service: Installation) -> None:
    service = own_service
    service.start_worker(**SIX)
    jobs = spread(service)
    queued = service.submit("queued")
    own_server.kill()
    own_server.restart()
    let_go(service)
    assert_ended_well(service, jobs, [OK])
    service.assert_settled(service.wait(queued), "queued")


@pytest.mark.fault("Valkey paused for longer than a lease")
@pytest.mark.short_lease
def test_the_server_is_paused_in_all_stages(own_server: OwnServer, own_service: Installation) -> None:
    service = own_service
    service.start_worker(**SIX)
    service.start_worker(**SIX)
    jobs = spread(service)
    own_server.pause()
    wait_in_vain(2 * float(service.environment()["TRAINPACK_LEASE_S"]))
    own_server.resume()
    let_go(service)
    assert_ended_well(service, jobs, [OK])


def wait_in_vain(seconds: float) -> None:
    """The fault itself is a length of time; nothing happens meanwhile that could be waited for."""
    with pytest.raises(AssertionError):
        eventually(lambda: False, "never", seconds)


def deliver_again(service: Installation, times: int) -> None:
    """What the broker's transport does when the visibility time of a message is over."""
    for unacked in service.redis.hvals(service.keys.broker_prefix + "unacked"):
        payload, _, queue = json.loads(unacked)
        for _ in range(times):
            service.redis.rpush(queue_keys(service.keys, queue)[4], json.dumps(payload))


@pytest.mark.fault("each message delivered three more times")
def test_the_messages_of_all_stages_are_delivered_again(service: Installation) -> None:
    quiet = {**SIX, "requeue_after_s": 600}  # no other message is sent twice
    service.start_worker(**quiet)
    jobs = spread(service)
    second = service.start_worker(**quiet, log_level="debug")
    deliver_again(service, 3)
    eventually(lambda: second.lines.count('"message_ignored"') == 3 * len(PLAN), "all taken and ignored")
    let_go(service)
    assert_ended_well(service, jobs, [OK])


@pytest.mark.fault("visibility timeout shorter than the stage")
def test_all_stages_outlast_the_visibility_time(service: Installation) -> None:
    service.start_worker(**SIX)
    jobs = spread(service)
    second = service.start_worker(**SIX, log_level="debug")
    options = transport_options(service.keys, 5) | {"visibility_timeout": 0.5}
    with Connection(service.url, transport_options=options) as consumer:
        # Any consumer gives back what was not acknowledged in time; workers do so at their start and every 100 s.
        quality = consumer.default_channel.qos

        def ignored() -> bool:
            quality.restore_visible(interval=1)
            return second.lines.count('"message_ignored"') >= len(PLAN)

        eventually(ignored, "delivered again")
    let_go(service)
    assert_ended_well(service, jobs, [OK])


@pytest.mark.fault("wall clocks of two workers leap by an hour; then kill -9 of one")
@pytest.mark.short_lease
def test_clocks_leap_in_all_stages(service: Installation) -> None:
    worker = service.start_worker(**SIX, module="tests.integration.skewed_worker")
    jobs = spread(service)
    service.start_worker(**SIX, module="tests.integration.skewed_worker")
    wait_in_vain(2 * float(service.environment()["TRAINPACK_LEASE_S"]))
    assert not any("rescued" in text for job in jobs.values() for text in service.messages(job.id))
    worker.kill()
    held(service, TWO_RUNS)
    let_go(service)
    assert_ended_well(service, jobs, [RESCUED, OK])
    for job in jobs.values():
        times = [event.time for event in service.client.events(job.id)]
        assert times[-1] - times[0] < timedelta(minutes=30), "the log has the server's time"


@pytest.mark.fault("a transient error, twice")
def test_all_stages_meet_a_transient_error(service: Installation) -> None:
    service.start_worker(slots=3)
    jobs = {stage: service.submit(stage, labels={stage: "transient:2"}) for stage in PLAN}
    assert_ended_well(service, jobs, [RETRIED, RETRIED, OK])


@pytest.mark.fault("a permanent error")
def test_all_stages_meet_a_permanent_error(service: Installation) -> None:
    service.start_worker(slots=3)
    jobs = {stage: service.submit(stage, labels={stage: "permanent"}) for stage in PLAN}
    for stage, job in jobs.items():
        done = service.wait(job)
        assert done.state is JobState.FAILED
        assert outcomes(done, stage) == [FAILED]
        assert not list(service.path("", stage).glob("*.gguf"))


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """A file system of one MiB for each stage's job."""
    places: dict[str, Path] = {}
    try:
        for stage in PLAN:
            place = tmp_path / stage
            place.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                pytest.skip("mounting a small file system is not permitted here")
            places[stage] = place
        yield places
    finally:
        for place in places.values():
            subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault("disk full")
def test_the_disks_of_all_stages_are_full(small_disks: dict[str, Path], service: Installation) -> None:
    service.start_worker(slots=3)
    jobs = {stage: service.submit(stage, labels={stage: "full"}) for stage in small_disks}
    for stage, job in jobs.items():
        done = service.wait(job)
        assert done.state is JobState.FAILED
        assert done.error is not None
        assert done.error["code"] == "disk_space_insufficient"
        assert outcomes(done, stage) == [FAILED]

"""A worker that is stopped past its lease and wakes up again: what it brings is refused."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from api_client import AttemptOutcome
from tests.integration.faults.wire import Wire
from tests.integration.harness import BOUND_S, Installation, eventually, is_alive, outcomes

pytestmark = pytest.mark.short_lease


def test_on_the_same_host_its_stage_process_is_ended_before_the_next_attempt(service: Installation) -> None:
    zombie = service.start_worker()
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    zombie.signal(signal.SIGSTOP)
    service.start_worker()
    service.held("convert", 2)
    assert not is_alive(service.stage_pid("convert", 1))
    service.let_go("convert")
    job = service.wait(job)
    zombie.signal(signal.SIGCONT)
    eventually(lambda: "lease_lost" in zombie.lines, "the zombie sees that it lost")
    service.assert_settled(job)
    assert outcomes(job, "convert") == [AttemptOutcome.RESCUED, AttemptOutcome.SUCCEEDED]
    assert "end convert 1" not in service.runs()


@pytest.mark.fault("SIGSTOP of a worker on another host past its lease, then SIGCONT")
def test_on_another_host_its_late_result_is_refused(service: Installation) -> None:
    zombie = service.start_worker(host_name="alpha", scratch_dir=service.directory / "alpha")
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    zombie.signal(signal.SIGSTOP)
    service.start_worker(host_name="beta", scratch_dir=service.directory / "beta")
    # Beta does prepare again, since it sees other paths, and then the stage itself.
    service.held("convert", 3)
    service.let_go("convert")
    job = service.wait(job)
    outputs = {p: p.stat().st_mtime_ns for p in service.path("").glob("*.gguf")}
    eventually(lambda: "end convert 1" in service.runs(), "the zombie's stage finishes its work")
    zombie.signal(signal.SIGCONT)
    eventually(lambda: "lease_lost" in zombie.lines, "the zombie sees that it lost")
    assert service.client.get(job.id) == job
    assert outcomes(job, "convert") == [
        AttemptOutcome.RESCUED,
        AttemptOutcome.HANDED_BACK,
        AttemptOutcome.SUCCEEDED,
    ]
    assert {p: p.stat().st_mtime_ns for p in service.path("").glob("*.gguf")} == outputs


@pytest.mark.fault("SIGSTOP of a worker on another host past its lease, then SIGCONT")
def test_a_zombie_publishes_nothing(service: Installation) -> None:
    zombie = service.start_worker(host_name="alpha", scratch_dir=service.directory / "alpha")
    job = service.submit(labels={"publish": "hold:deaf"})
    service.held("publish")
    zombie.signal(signal.SIGSTOP)
    service.start_worker(host_name="beta", scratch_dir=service.directory / "beta")
    service.held("publish", 3)
    pid = service.stage_pid("publish", 1)
    other = service.stage_pid("publish", 3)
    psutil.Process(other).suspend()  # The zombie is let go first, while the newest attempt has published nothing yet.
    service.let_go("publish")
    zombie.signal(signal.SIGCONT)
    eventually(lambda: not is_alive(pid), "the zombie's stage has ended")
    assert list(service.path("").glob("[!.]*.gguf")) == []
    psutil.Process(other).resume()
    job = service.wait(job)
    assert job.state == "succeeded"
    assert [line for line in service.runs() if line.startswith("end publish")] == ["end publish 3"]


def test_a_zombie_removes_nothing_of_the_newest_attempt(service: Installation) -> None:
    zombie = service.start_worker()
    job = service.submit(labels={"publish": "hold:deaf"})
    service.held("publish")
    zombie.signal(signal.SIGSTOP)
    service.start_worker()
    service.held("publish", 2)
    half = service.path(".merged_model.gguf.00000000.tmp")
    assert half.exists(), "the newest attempt has it half-written"
    zombie.signal(signal.SIGCONT)
    eventually(lambda: "lease_lost" in zombie.lines, "the zombie sees that it lost")
    assert half.exists()
    service.let_go("publish")
    service.assert_settled(service.wait(job))


@pytest.fixture
def wire(valkey: str) -> Iterator[Wire]:
    found = Wire(valkey, cut=rb"HSET\r\n\S+\r\n\S+:scratch:cut-off")
    yield found
    found.close()


@pytest.mark.fault("a worker is cut off right after it took the lease, for longer than that")
def test_one_that_was_cut_off_with_its_lease_ends_nobody(wire: Wire, service: Installation) -> None:
    same_disk: dict[str, Any] = {"scratch_dir": service.directory / "scratch", "scratch_shared": True}
    zombie = service.start_worker(host_name="cut-off", redis_url=wire.url, **same_disk)
    job = service.submit(labels={"prepare": "hold:deaf"})
    assert wire.is_cut.wait(BOUND_S), "it is about to note its scratch directory"
    service.start_worker(host_name="other", **same_disk)
    service.held("prepare", 2)
    wire.mend()
    eventually(lambda: "lease_lost" in zombie.lines, "it sees that it lost")
    assert is_alive(service.stage_pid("prepare", 2))
    service.let_go("prepare")
    job = service.wait(job)
    service.assert_settled(job)
    assert outcomes(job, "prepare") == [AttemptOutcome.RESCUED, AttemptOutcome.SUCCEEDED]

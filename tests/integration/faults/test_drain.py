"""SIGTERM: no new stage, the running one is handed back without spending anything, and the worker leaves in time."""

from __future__ import annotations

import signal
import time

from api_client import AttemptOutcome, JobState
from tests.integration.faults.conftest import OwnServer
from tests.integration.harness import BOUND_S, Installation, eventually, outcomes

PLAN = ["prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish"]


def test_the_running_stage_stops_at_a_safe_point_and_another_worker_goes_on(service: Installation) -> None:
    first = service.start_worker(drain_s=600)
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    assert first.stop() == 0
    assert "Traceback" not in first.lines
    service.start_worker()
    service.held("convert", 2)
    service.let_go("convert")
    job = service.wait(job)
    service.assert_settled(job)
    assert outcomes(job, "convert") == [AttemptOutcome.HANDED_BACK, AttemptOutcome.SUCCEEDED]
    assert service.redis.hget(service.keys.stages(job.id), "convert:crashes") == "0"


def test_a_deaf_stage_is_ended_at_the_bound_and_handed_back(service: Installation) -> None:
    worker = service.start_worker(drain_s=1)
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    started = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - started >= 1
    assert outcomes(service.client.get(job.id), "convert") == [AttemptOutcome.HANDED_BACK]


def test_a_second_signal_is_faster(service: Installation) -> None:
    worker = service.start_worker(drain_s=600)
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    worker.signal(signal.SIGTERM)
    eventually(lambda: "draining" in worker.lines, "draining")
    assert worker.stop() == 0
    assert outcomes(service.client.get(job.id), "convert") == [AttemptOutcome.HANDED_BACK]


def test_a_draining_worker_takes_nothing_new(service: Installation) -> None:
    worker = service.start_worker(drain_s=600)
    service.submit("running", labels={"prepare": "hold:deaf"})
    service.held("prepare", output="running")
    worker.signal(signal.SIGTERM)
    eventually(lambda: "draining" in worker.lines, "draining")
    waiting = service.submit("waiting")
    service.let_go("prepare", "running")
    assert worker.process.wait(BOUND_S) == 0
    assert service.runs("waiting") == []
    service.start_worker()
    service.assert_settled(service.wait(waiting), "waiting")


def test_a_rolling_restart_under_load_loses_nothing(service: Installation) -> None:
    workers = [service.start_worker(slots=2) for _ in range(2)]
    names = [f"job-{number}" for number in range(10)]
    jobs = {name: service.submit(name) for name in names}
    for worker in workers:
        service.start_worker(slots=2)
        assert worker.stop() == 0
    for name, job in jobs.items():
        done = service.wait(job)
        assert done.state is JobState.SUCCEEDED
        service.assert_settled(done, name)
        ends = [line.split()[1] for line in service.runs(name) if line.startswith("end")]
        assert ends == PLAN, "no stage ran twice to its end"
        assert {a.outcome for s in done.stages for a in s.attempts} <= {
            AttemptOutcome.SUCCEEDED,
            AttemptOutcome.HANDED_BACK,
        }


def test_a_worker_leaves_in_time_while_redis_is_away(own_server: OwnServer, own_service: Installation) -> None:
    service = own_service
    worker = service.start_worker(drain_s=1, outage_s=300)
    service.submit(labels={"convert": "hold"})
    service.held("convert")
    own_server.kill()
    assert worker.stop() == 0

"""kill -9 of the stage's process and of the worker, at the start of every stage and between its work and its record."""

from __future__ import annotations

import signal

import pytest

from api_client import AttemptOutcome, JobState
from tests.integration.harness import Installation

PLAN = ["prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish"]


@pytest.mark.fault("kill -9 of the stage's process, at its start and again between its work and its record")
def test_the_stage_process_dies_twice_in_every_stage(service: Installation) -> None:
    service.start_worker()
    job = service.wait(service.submit(labels=dict.fromkeys(PLAN, "die:stage")))
    service.assert_settled(job)
    expected = [AttemptOutcome.CRASHED, AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    assert {stage.name.value: [a.outcome for a in stage.attempts] for stage in job.stages} == dict.fromkeys(
        PLAN, expected
    )
    assert [line for line in service.runs() if line.startswith("end")] == [f"end {stage} 3" for stage in PLAN]


@pytest.mark.fault("kill -9 of the worker, at the start of the stage and again between its work and its record")
@pytest.mark.short_lease
def test_the_worker_dies_twice_in_every_stage(service: Installation) -> None:
    fast = {"reap_s": 0.2}
    job = service.submit(labels=dict.fromkeys(PLAN, "die:worker"))
    restarts = service.keep_alive(2, lambda: service.client.get(job.id).finished, **fast)
    job = service.wait(job)
    service.assert_settled(job)
    assert restarts == 2 * len(PLAN)
    expected = [AttemptOutcome.RESCUED, AttemptOutcome.RESCUED, AttemptOutcome.SUCCEEDED]
    assert {stage.name.value: [a.outcome for a in stage.attempts] for stage in job.stages} == dict.fromkeys(
        PLAN, expected
    )
    assert [line for line in service.runs() if line.startswith("end")] == [f"end {stage} 3" for stage in PLAN]


@pytest.mark.fault("kill -9 of the worker each time, two crashes allowed")
@pytest.mark.short_lease
def test_a_stage_that_takes_its_worker_down_each_time_is_given_up(service: Installation) -> None:
    job = service.submit(labels={"merge": "die:worker"})
    fast = {"reap_s": 0.2, "max_crashes": 2}
    service.keep_alive(2, lambda: service.client.get(job.id).finished, **fast)
    job = service.wait(job)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "stage_crashed"
    assert "was lost while it ran the stage (crash 2 of 2)" in job.error["message"]


@pytest.mark.fault("kill -9 of the worker after a cancel")
@pytest.mark.short_lease
def test_a_cancel_survives_the_death_of_the_worker(service: Installation) -> None:
    worker = service.start_worker()
    job = service.submit(labels={"convert": "hold:deaf"})
    service.held("convert")
    worker.signal(signal.SIGSTOP)
    service.client.cancel(job.id)
    worker.kill()
    service.start_worker()
    assert service.wait(job).state is JobState.CANCELLED


@pytest.mark.short_lease
def test_what_a_dead_publish_left_goes_before_the_next_one_is_recorded(service: Installation) -> None:
    worker = service.start_worker()
    job = service.submit(labels={"publish": "hold"})
    service.held("publish")
    worker.kill()
    service.path(".merged_model.gguf.deadbeef.tmp").write_bytes(b"half of a large file")
    dying = service.start_worker(module="tests.integration.dying_worker")
    service.let_go("publish")
    job = service.wait(job)
    assert dying.process.wait(10) == -signal.SIGKILL
    service.start_worker()
    service.assert_settled(job)

"""A worker before more jobs than it can run at once."""

from __future__ import annotations

from itertools import pairwise

import pytest

from api_client import JobState, StageName
from tests.integration.harness import Installation


@pytest.mark.parametrize("shared", [False, True], ids=["scratch of its own", "shared scratch"])
def test_a_job_is_ended_before_the_next_is_begun(service: Installation, shared: bool) -> None:
    submitted = [service.submit(f"out-{number}") for number in range(3)]
    service.start_worker(scratch_shared=shared)
    jobs = [service.wait(job) for job in submitted]
    assert all(job.state is JobState.SUCCEEDED for job in jobs)
    for before, after in pairwise(jobs):
        begun_at = after.stage(StageName.PREPARE).started_at
        assert before.finished_at is not None
        assert begun_at is not None
        assert before.finished_at <= begun_at


def test_a_worker_that_comes_later_takes_its_part(service: Installation) -> None:
    submitted = [
        service.submit(f"out-{number}", labels={"convert": "hold"} if number == 0 else {}) for number in range(4)
    ]
    service.start_worker(host_name="early")
    service.held("convert", output="out-0")
    service.start_worker(host_name="late")
    others = [service.wait(job) for job in submitted[1:]]
    workers = {attempt.worker for job in others for stage in job.stages for attempt in stage.attempts}
    assert {worker.split("-")[0] for worker in workers} == {"late"}
    service.let_go("convert", "out-0")
    assert service.wait(submitted[0]).state is JobState.SUCCEEDED


def test_an_urgent_job_goes_before_the_rest_of_one_that_was_begun(service: Installation) -> None:
    first = service.submit("first", labels={"convert": "hold"})
    service.start_worker()
    service.held("convert", output="first")
    urgent = service.submit("urgent", priority=9)
    service.let_go("convert", "first")
    first, urgent = service.wait(first), service.wait(urgent)
    assert urgent.finished_at is not None
    quantize = first.stage(StageName.QUANTIZE)
    assert quantize.started_at is not None
    assert urgent.finished_at <= quantize.started_at

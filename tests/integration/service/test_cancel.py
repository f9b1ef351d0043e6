"""Cancelling at any moment, with nothing half-written left. How soon is for the bounds to say: tests/unit/state."""

from __future__ import annotations

import psutil
import pytest

from api_client import JobState, PackagingError, StageState
from tests.integration.harness import Installation, eventually


def test_a_queued_job_ends_at_once_and_never_runs(service: Installation) -> None:
    job = service.submit()
    assert service.client.cancel(job.id).state is JobState.CANCELLED
    service.start_worker()
    other = service.wait(service.submit("other"))
    assert other.state is JobState.SUCCEEDED
    assert service.runs() == []


@pytest.mark.parametrize("stage", ["prepare", "convert", "publish"])
@pytest.mark.parametrize("behaviour", ["hold", "hold:deaf"])
def test_a_running_stage_ends_and_leaves_nothing(running: Installation, stage: str, behaviour: str) -> None:
    job = running.submit(labels={stage: behaviour})
    running.held(stage)
    assert running.client.cancel(job.id).cancel_requested
    job = running.wait(job)
    assert job.state is JobState.CANCELLED
    assert {s.state for s in job.stages} <= {StageState.SUCCEEDED, StageState.CANCELLED}
    eventually(lambda: not psutil.pid_exists(running.stage_pid(stage)), "the stage's process is gone")
    assert list(running.path("").glob("*.tmp")) == []
    scratch = running.path(f".trainpack-{job.id}")
    eventually(lambda: not scratch.exists(), "no scratch is left")


def test_a_retry_that_waits_is_cancelled_too(service: Installation) -> None:
    service.start_worker(retry_base_s=60, retry_max_s=60)
    job = service.submit(labels={"merge": "transient:99"})
    eventually(lambda: any("next in" in text for text in service.messages(job.id)), "retry scheduled")
    assert service.client.cancel(job.id).state is JobState.CANCELLED


def test_a_finished_job_is_refused(running: Installation) -> None:
    job = running.wait(running.submit())
    with pytest.raises(PackagingError) as caught:
        running.client.cancel(job.id)
    assert caught.value.code == "job_finished"
    with pytest.raises(PackagingError) as caught:
        running.client.cancel("20200101-000000-nobody")
    assert caught.value.code == "job_not_found"

"""Replaying ended jobs: from the failure or a chosen stage, making again only what is missing or changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api_client import JobState, PackagingError, StageName
from tests.integration.harness import Installation


def runs_since(service: Installation, before: list[str]) -> list[str]:
    return [line for line in service.runs()[len(before) :] if line.startswith("start")]


def test_from_the_first_failed_stage_with_new_attempt_numbers(service: Installation) -> None:
    service.start_worker(max_retries=0)
    job = service.wait(service.submit(labels={"quantize": "transient:1"}))
    assert job.state is JobState.FAILED
    entries = len(service.messages(job.id))
    job = service.client.replay(job.id)
    assert job.error is None
    job = service.wait(job)
    service.assert_settled(job)
    assert [line for line in service.runs() if line.startswith("start")] == [
        "start prepare 1",
        "start merge 1",
        "start convert 1",
        "start quantize 1",
        "start quantize 2",
        "start verify 1",
        "start evaluate 1",
        "start publish 1",
    ]
    messages = service.messages(job.id)
    assert messages[entries] == "Job replayed from quantize"
    assert messages[0] == "Job submitted"


@pytest.mark.parametrize(
    ("stage", "harm", "again"),
    [
        ("quantize", None, ["merge 2", "quantize 3", "verify 2", "evaluate 2", "publish 2"]),
        ("publish", None, ["publish 2"]),
        # The published file counts as convert's until someone changes or removes it; the overlay, which evaluate reads,
        # went with scratch. The attempt that finds this out (the second) runs nothing itself.
        ("quantize", "change", ["merge 2", "convert 2", "quantize 3", "verify 2", "evaluate 2", "publish 2"]),
        ("verify", "remove", ["merge 2", "convert 2", "verify 3", "evaluate 2", "publish 2"]),
        ("prepare", None, ["prepare 2", "merge 2", "convert 2", "quantize 2", "verify 2", "evaluate 2", "publish 2"]),
        (None, None, ["prepare 2", "merge 2", "convert 2", "quantize 2", "verify 2", "evaluate 2", "publish 2"]),
    ],
)
def test_of_a_succeeded_job_runs_what_is_needed(
    running: Installation, stage: str | None, harm: str | None, again: list[str]
) -> None:
    job = running.wait(running.submit())
    running.assert_settled(job)
    path = running.path("merged_model.gguf")
    if harm == "change":
        path.write_bytes(b"!" * path.stat().st_size)
    elif harm == "remove":
        path.unlink()
    before = running.runs()
    job = running.wait(running.client.replay(job.id, from_stage=stage))
    running.assert_settled(job)
    assert runs_since(running, before) == [f"start {run}" for run in again]


def test_refusals(running: Installation) -> None:
    job = running.submit(labels={"merge": "hold"})
    running.held("merge")
    with pytest.raises(PackagingError) as caught:
        running.client.replay(job.id)
    assert caught.value.code == "job_running"
    running.let_go("merge")
    running.wait(job)
    for wrong in ("imatrix", "polish"):
        with pytest.raises(PackagingError) as caught:
            running.client.replay(job.id, from_stage=wrong)
        assert caught.value.code == "stage_not_in_plan"
        assert "prepare, merge, convert" in caught.value.message
    with pytest.raises(PackagingError) as caught:
        running.client.replay("20200101-000000-nobody")
    assert caught.value.code == "job_not_found"


def test_a_cancelled_job_makes_again_what_its_end_removed(running: Installation) -> None:
    job = running.submit(labels={"convert": "hold"})
    running.held("convert")
    running.client.cancel(job.id)
    assert running.wait(job).state is JobState.CANCELLED
    running.let_go("convert")
    before = running.runs()
    job = running.wait(running.client.replay(job.id))
    running.assert_settled(job)
    assert not job.cancel_requested
    again = ("merge 2", "convert 3", "quantize 1", "verify 1", "evaluate 1", "publish 1")
    assert runs_since(running, before) == [f"start {run}" for run in again]


def test_all_failed_ones_of_a_code(service: Installation) -> None:
    service.start_worker(max_retries=0)
    upload = [service.submit(f"u{n}", labels={"publish": "transient:1"}) for n in range(3)]
    other = service.submit("other", labels={"merge": "permanent"})
    for job in [*upload, other]:
        service.wait(job)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert service.client.replay_failed(datetime.now(UTC) + timedelta(hours=1)) == []
    replayed = service.client.replay_failed(hour_ago, code="upload_failed")
    assert {job.id for job in replayed} == {job.id for job in upload}
    assert {service.wait(job).state for job in upload} == {JobState.SUCCEEDED}
    assert service.client.get(other.id).state is JobState.FAILED
    assert service.client.get(other.id).stage(StageName.MERGE).attempt == 1

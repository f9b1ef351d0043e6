"""Priorities, caps by label, host affinity and moving to another host."""

from __future__ import annotations

import shutil
import threading
from typing import Any

import pytest

from api_client import AttemptOutcome, JobState, StageName
from api_client.contract.job import Job
from tests.integration.harness import Installation, eventually


def started_at(service: Installation, job: Job) -> float:
    started = service.client.get(job.id).started_at
    assert started is not None
    return started.timestamp()


def test_urgent_jobs_go_first(service: Installation) -> None:
    service.start_worker()
    service.submit("busy", labels={"prepare": "hold"})
    service.held("prepare", output="busy")
    jobs = {priority: service.submit(f"p{priority}", priority=priority) for priority in (0, 5, 9, 1, 7)}
    service.let_go("prepare", "busy")
    for job in jobs.values():
        service.wait(job)
    order = sorted(jobs, key=lambda priority: started_at(service, jobs[priority]))
    assert order == [9, 7, 5, 1, 0]


def test_a_cap_by_label_leaves_room_for_others(service: Installation) -> None:
    service.start_worker(slots=3, label_limits='{"team": 1}')
    first = service.submit("first", labels={"team": "red", "merge": "hold"})
    service.held("merge", output="first")
    second = service.submit("second", labels={"team": "red"})
    third = service.submit("third", labels={"team": "red"})
    other = service.submit("other", labels={"team": "blue"})
    assert service.wait(other).state is JobState.SUCCEEDED
    assert service.runs("second") + service.runs("third") == []
    waiting = service.keys.named("waiting:team=red")
    eventually(lambda: service.redis.zcard(waiting) == 2, "both wait for the team's place")
    assert sum(queue.due for queue in service.client.queues()) == 0, "another worker would not help them"
    service.let_go("merge", "first")
    for name, job in (("first", first), ("second", second), ("third", third)):
        service.assert_settled(service.wait(job), name)
    assert service.redis.keys(f"{service.prefix}:running:*") == []
    assert service.redis.keys(f"{service.prefix}:waiting:*") == []


def test_a_place_that_the_next_in_line_cannot_take_goes_to_the_one_after(service: Installation) -> None:
    service.start_worker(slots=4, label_limits='{"team": 1, "project": 1}', requeue_after_s=600)
    red = service.submit("red", labels={"team": "red", "merge": "hold"})
    service.held("merge", output="red")
    both = service.submit("both", labels={"team": "red", "project": "x"})
    waiting = service.keys.named("waiting:team=red")
    eventually(lambda: service.redis.zcard(waiting) == 1, "it waits for the team's place")
    project = service.submit("project", labels={"project": "x", "merge": "hold"})
    service.held("merge", output="project")
    after = service.submit("after", labels={"team": "red"})
    eventually(lambda: service.redis.zcard(waiting) == 2, "the next one waits too")
    service.let_go("merge", "red")
    for name, job in (("red", red), ("after", after)):
        service.assert_settled(service.wait(job), name)
    assert service.runs("both") == []
    service.let_go("merge", "project")
    for name, job in (("project", project), ("both", both)):
        service.assert_settled(service.wait(job), name)


def test_a_stage_with_a_place_again_has_been_due_since_it_first_was(service: Installation) -> None:
    worker = service.start_worker(slots=2, label_limits='{"team": 1}', requeue_after_s=600)
    first = service.submit("first", labels={"team": "red", "merge": "hold"})
    service.held("merge", output="first")
    second = service.submit("second", labels={"team": "red"})
    waiting, due = service.keys.named("waiting:team=red"), service.keys.due("packaging.io")
    eventually(lambda: service.redis.zcard(waiting) == 1, "it waits for the team's place")
    assert service.redis.zscore(due, f"{second.id}|prepare") is None
    worker.stop()  # the stage that is handed back frees the place
    submitted_ms = int(service.redis.hget(service.keys.job(second.id), "created_at"))
    assert service.redis.zscore(due, f"{second.id}|prepare") == submitted_ms
    service.let_go("merge", "first")
    service.start_worker(label_limits='{"team": 1}')
    for name, job in (("first", first), ("second", second)):
        service.assert_settled(service.wait(job), name)


def test_places_of_jobs_that_vanished_are_free(service: Installation) -> None:
    service.redis.sadd(service.keys.named("running:team=red"), "20200101-000000-nobody|merge")
    service.start_worker(label_limits='{"team": 1}', requeue_after_s=600)
    service.assert_settled(service.wait(service.submit(labels={"team": "red"})))
    assert service.redis.keys(f"{service.prefix}:running:*") == []


def test_stages_stay_on_the_host_that_has_the_scratch(service: Installation) -> None:
    for host in ("alpha", "beta"):
        service.start_worker(host_name=host, scratch_dir=service.directory / host)
    jobs = [service.submit(f"job-{number}") for number in range(4)]
    for job in jobs:
        done = service.wait(job)
        assert done.state is JobState.SUCCEEDED
        assert len({a.worker for stage in done.stages for a in stage.attempts}) == 1


def test_a_shared_scratch_lets_any_host_go_on(service: Installation) -> None:
    shared: dict[str, Any] = {"scratch_dir": service.directory / "shared", "scratch_shared": True}
    first = service.start_worker(host_name="alpha", **shared)
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    first.stop()
    service.start_worker(host_name="beta", **shared)
    service.held("convert", 2)
    service.let_go("convert")
    job = service.wait(job)
    assert [line for line in service.runs() if line.startswith("start")] == [
        f"start {run}"
        for run in (
            *("prepare 1", "merge 1", "convert 1", "convert 2", "quantize 1"),
            *("verify 1", "evaluate 1", "publish 1"),
        )
    ]


@pytest.mark.short_lease
def test_a_job_moves_when_its_host_is_gone(service: Installation) -> None:
    first = service.start_worker(host_name="alpha", scratch_dir=service.directory / "alpha")
    reachable = service.submit("reachable", labels={"convert": "hold:deaf"})
    service.held("convert", output="reachable")
    first.kill()
    second = service.start_worker(host_name="beta", scratch_dir=service.directory / "beta")
    service.let_go("convert", "reachable")
    job = service.wait(reachable)
    assert job.state is JobState.SUCCEEDED
    assert "host_gone" in second.lines
    # Prepare looked at the old host's paths, so it runs again; the overlay is still in reach (one disk in this test).
    assert [line for line in service.runs("reachable") if line.startswith("start")] == [
        f"start {run}"
        for run in (
            "prepare 1",
            "merge 1",
            "convert 1",
            "prepare 2",
            "convert 3",
            "quantize 1",
            "verify 1",
            "evaluate 1",
            "publish 1",
        )
    ]
    assert [a.outcome for a in job.stage(StageName.CONVERT).attempts] == [
        AttemptOutcome.RESCUED,
        AttemptOutcome.HANDED_BACK,
        AttemptOutcome.SUCCEEDED,
    ]


@pytest.mark.short_lease
def test_what_went_with_the_host_is_made_again(service: Installation) -> None:
    first = service.start_worker(host_name="alpha", scratch_dir=service.directory / "alpha")
    job = service.submit(labels={"quantize": "hold:deaf"})
    service.held("quantize")
    first.kill()
    eventually(lambda: not service.stage_processes(), "the host's processes are gone")
    shutil.rmtree(service.directory / "alpha")
    service.start_worker(host_name="beta", scratch_dir=service.directory / "beta")
    service.let_go("quantize")
    job = service.wait(job)
    assert job.state is JobState.SUCCEEDED
    again = [line for line in service.runs() if line.startswith("start")][4:]
    assert again == [
        f"start {run}"
        for run in (
            *("prepare 2", "merge 2", "convert 2", "quantize 3"),
            *("verify 1", "evaluate 1", "publish 1"),
        )
    ]


def test_jobs_of_one_worker_run_one_after_the_other(service: Installation) -> None:
    service.start_worker()
    jobs = [service.submit(f"job-{number}", labels={"merge": "hold"}) for number in range(2)]
    eventually(lambda: any(service.path("merge.1.held", f"job-{n}").exists() for n in range(2)), "one holds")
    threading.Event().wait(0.5)
    assert sum(service.path("merge.1.held", f"job-{n}").exists() for n in range(2)) == 1
    for number in range(2):
        service.let_go("merge", f"job-{number}")
    assert {service.wait(job).state for job in jobs} == {JobState.SUCCEEDED}


def test_stages_beside_each_other_have_a_gpu_each(service: Installation) -> None:
    service.start_worker(slots=2, gpus="3:5")
    jobs = [service.submit(name, labels={"convert": "hold"}) for name in ("one", "two")]
    for name in ("one", "two"):
        service.held("convert", output=name)
    assert {service.path("convert.1.held", name).read_text() for name in ("one", "two")} == {"3", "5"}
    for name, job in zip(("one", "two"), jobs, strict=True):
        service.let_go("convert", name)
        assert service.wait(job).state is JobState.SUCCEEDED

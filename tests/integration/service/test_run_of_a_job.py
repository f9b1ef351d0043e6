"""A job from submit to its end, through a real Valkey and a real worker."""

from __future__ import annotations

import json

from api_client import AttemptOutcome, EventKind, Job, JobState, StageName, StageState
from api_client.contract.job import PEAK_MEMORY_FACT
from tests.integration.harness import Installation, eventually

PLAN = ["prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish"]


def test_every_stage_runs_once_and_leaves_only_outputs(running: Installation) -> None:
    job = running.submit(labels={"run": "42"})
    assert job.state in (JobState.QUEUED, JobState.RUNNING)
    assert [stage.name.value for stage in job.stages] == PLAN

    job = running.wait(job)

    assert job.state is JobState.SUCCEEDED, job.error
    assert running.runs() == [f"{word} {stage} 1" for stage in PLAN for word in ("start", "end")]
    assert all(stage.state is StageState.SUCCEEDED and stage.attempt == 1 for stage in job.stages)
    assert all([a.outcome for a in stage.attempts] == [AttemptOutcome.SUCCEEDED] for stage in job.stages)
    assert [artifact.name for artifact in job.outputs] == [
        "merged_model.gguf",
        "merged_model-Q4_K_M.gguf",
        "quality.json",
    ]
    prepared = job.stage(StageName.PREPARE)
    assert prepared.facts == {"seen": "prepare", PEAK_MEMORY_FACT: prepared.peak_memory_bytes}
    assert all((stage.peak_memory_bytes or 0) > 10_000_000 for stage in job.stages), "a Python process at least"
    left = ["events.jsonl", "merged_model-Q4_K_M.gguf", "merged_model.gguf", "quality.json", "runs.log"]
    eventually(lambda: sorted(path.name for path in running.path("").iterdir()) == left, "scratch removed, log kept")

    events = list(running.client.events(job.id, follow=True, timeout_s=10))
    messages = [event.message for event in events]
    assert messages[0] == "Job submitted"
    assert messages[-1] == "Job succeeded"
    assert [e.stage for e in events if e.kind is EventKind.COMMAND_SUCCESS] == [StageName(name) for name in PLAN]
    assert [e.message for e in events if e.kind is EventKind.MERGE_LORA] == ["merge works"]
    assert {e.fields["done"] for e in events if e.kind is EventKind.PROGRESS} >= {3}
    kept = [json.loads(line) for line in running.path("events.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in kept] == [event.id for event in events]


def test_logs_in_one_directory_do_not_replace_each_other_nor_a_file_of_the_user_s(running: Installation) -> None:
    def holds_log_of(job: Job) -> bool:
        try:
            return job.id in running.path("events.jsonl").read_text()
        except FileNotFoundError:  # also for a moment while another job's log makes room
            return False

    first = running.wait(running.submit())
    eventually(lambda: holds_log_of(first), "the first job's log kept")
    second = running.wait(running.submit())
    eventually(lambda: holds_log_of(second), "the second job's log kept")
    kept = running.path(f"events-{first.id}.jsonl")
    assert all(json.loads(line)["job_id"] == first.id for line in kept.read_text().splitlines())

    running.path("", "mine").mkdir()
    running.path("events.jsonl", "mine").write_text('{"loss": 0.1}\n')
    third = running.wait(running.submit("mine"))
    eventually(running.path(f"events-{third.id}.jsonl", "mine").exists, "the third job's log kept")
    assert running.path("events.jsonl", "mine").read_text() == '{"loss": 0.1}\n'


def test_the_worker_never_imports_torch(service: Installation) -> None:
    service.start_worker(preload="torch")
    service.wait(service.submit(), 120)  # importing torch takes its time on a busy machine
    [worker] = service.client.workers()
    assert not worker.torch_loaded
    assert worker.slots == 1
    assert worker.queues[1:] == ("packaging.heavy", "packaging.io")


def test_a_stopped_worker_leaves_no_record(service: Installation) -> None:
    worker = service.start_worker()
    assert worker.stop() == 0
    assert service.client.workers() == []

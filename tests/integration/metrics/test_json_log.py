"""A real worker's JSON log: every line about an attempt says which, whichever process wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api_client import Job, JobState
from tests.integration.harness import Installation, Worker, eventually


def lines(worker: Worker) -> list[dict[str, Any]]:
    """Every line, parsed: one that is no JSON object fails the test."""
    return [json.loads(line) for line in worker.lines.splitlines() if not line.startswith("worker: SIG")]


def about(worker: Worker, job: Job, stage: str) -> list[dict[str, Any]]:
    return [line for line in lines(worker) if (line.get("job_id"), line.get("stage")) == (job.id, stage)]


def test_every_line_of_an_attempt_names_it(service: Installation) -> None:
    worker = service.start_worker(log_level="debug", stage_registry="tests.integration.metrics.logging_stages:STAGES")
    job = service.submit(labels={"convert": "transient:1"})
    assert service.wait(job).state is JobState.SUCCEEDED
    assert worker.stop() == 0

    convert = about(worker, job, "convert")
    assert {line["attempt"] for line in convert} == {1, 2}
    events = [(line["event"], line["attempt"]) for line in convert if line["logger"].startswith("worker")]
    for attempt in (1, 2):
        assert ("attempt_started", attempt) in events
        assert ("attempt_ended", attempt) in events
    own = {line["event"]: line for line in convert if line["logger"] == "worker.of_tests"}
    assert own["from structlog"]["tensor"] == "blk.0"
    assert own["from structlog"]["level"] == "info"
    assert own["at debug"]["level"] == "debug"
    foreign = {line["event"]: line for line in convert if line["logger"] == "a.library"}
    assert foreign.keys() == {"a warning of a library", "an error with a traceback"}
    assert "ZeroDivisionError" in foreign["an error with a traceback"]["exception"]
    [spoken] = {line["message"] for line in convert if line["event"] == "stage_log"}
    assert spoken == "convert works"
    # Celery's own lines about the task too.
    assert any(line["logger"] == "celery.app.trace" and line["attempt"] == 2 for line in convert)
    # No line that has a task id in its text leaves the fields out.
    for line in lines(worker):
        if f"{job.id}:" in json.dumps(line):
            assert {"job_id", "stage", "attempt"} <= line.keys(), line


@pytest.mark.short_lease
def test_a_rescue_names_the_attempt(service: Installation) -> None:
    first = service.start_worker()
    job = service.submit(labels={"merge": "hold"})
    service.held("merge")
    second = service.start_worker()
    first.kill()
    service.let_go("merge")
    assert service.wait(job).state is JobState.SUCCEEDED
    [rescued] = eventually(lambda: [x for x in lines(second) if x["event"] == "stage_rescued"], "the rescue is logged")
    assert (rescued["job_id"], rescued["stage"], rescued["attempt"]) == (job.id, "merge", 1)

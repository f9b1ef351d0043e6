"""Stages that fail, crash, hang or grow: what becomes of them, and what their job says."""

from __future__ import annotations

import psutil
import pytest

from api_client import AttemptOutcome, JobState, StageName, StageState
from tests.integration.harness import Installation, eventually, is_alive, outcomes


def test_a_transient_error_is_retried_with_growing_delays(running: Installation) -> None:
    job = running.wait(running.submit(labels={"publish": "transient:2"}))
    assert job.state is JobState.SUCCEEDED
    assert outcomes(job, "publish") == [AttemptOutcome.RETRIED, AttemptOutcome.RETRIED, AttemptOutcome.SUCCEEDED]
    first = job.stage(StageName.PUBLISH).attempts[0]
    assert first.error is not None
    assert first.error["code"] == "upload_failed"
    assert first.error["fields"]["stage"] == "publish"


def test_transient_errors_end_after_their_bound(service: Installation) -> None:
    service.start_worker(max_retries=2)
    job = service.wait(service.submit(labels={"merge": "transient:99"}))
    assert job.state is JobState.FAILED
    assert outcomes(job, "merge") == [AttemptOutcome.RETRIED, AttemptOutcome.RETRIED, AttemptOutcome.FAILED]
    assert job.error is not None
    assert (job.error["code"], job.error["message"]) == ("upload_failed", "no answer to attempt 3")


@pytest.mark.parametrize(("behaviour", "code"), [("permanent", "base_model_invalid"), ("broken", "internal_error")])
def test_other_errors_are_never_retried(running: Installation, behaviour: str, code: str) -> None:
    job = running.wait(running.submit(labels={"convert": behaviour}))
    assert job.state is JobState.FAILED
    assert outcomes(job, "convert") == [AttemptOutcome.FAILED]
    assert job.error is not None
    assert job.error["code"] == code
    states = [stage.state for stage in job.stages]
    assert states == [StageState.SUCCEEDED] * 2 + [StageState.FAILED] + [StageState.PENDING] * 4
    assert "merged_model.gguf" not in {path.name for path in running.path("").iterdir()}


def test_a_crash_is_run_again_and_a_third_one_fails_the_job(running: Installation) -> None:
    saved = running.submit("saved", labels={"convert": "crash:2"})
    lost = running.submit("lost", labels={"convert": "crash:3"})
    saved, lost = running.wait(saved), running.wait(lost)
    assert saved.state is JobState.SUCCEEDED
    assert outcomes(saved, "convert") == [AttemptOutcome.CRASHED] * 2 + [AttemptOutcome.SUCCEEDED]
    assert lost.state is JobState.FAILED
    assert outcomes(lost, "convert") == [AttemptOutcome.CRASHED] * 3
    assert lost.error is not None
    assert lost.error["code"] == "stage_crashed"
    assert lost.error["fields"]["death"] == "killed by SIGSEGV"
    assert lost.error["fields"]["crashes"] == 3
    assert "about to crash" in lost.error["fields"]["last_lines"]


def test_an_early_exit_says_its_code_and_last_words(service: Installation) -> None:
    service.start_worker(max_crashes=1)
    job = service.wait(service.submit(labels={"merge": "leave:7"}))
    assert job.error is not None
    assert job.error["fields"]["death"] == "ended with exit code 7 and no result"
    assert job.error["fields"]["last_lines"] == ["leaving early"]


def test_a_stage_over_its_time_limit_is_ended(service: Installation) -> None:
    service.start_worker(stage_timeout_s=1)
    job = service.wait(service.submit(labels={"convert": "hold:deaf"}))
    assert job.error is not None
    assert job.error["code"] == "stage_timeout"
    assert not psutil.pid_exists(service.stage_pid("convert"))


def test_a_stage_over_its_memory_limit_is_ended(service: Installation) -> None:
    service.start_worker(stage_memory_bytes=2**29)
    job = service.wait(service.submit(labels={"quantize": "grow"}))
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    assert job.error["fields"]["used_bytes"] > job.error["fields"]["limit_bytes"] == 2**29
    assert not psutil.pid_exists(service.stage_pid("quantize"))


def test_a_stage_this_worker_does_not_have_is_named(service: Installation) -> None:
    service.start_worker(stage_registry="tests.integration.small_stages:FEWER")
    job = service.wait(service.submit())
    assert job.error is not None
    assert job.error["code"] == "dependency_missing"
    assert "'verify'" in job.error["message"]


def test_a_long_log_is_capped_and_says_so(service: Installation) -> None:
    service.start_worker(events_max=100)
    job = service.wait(service.submit(labels={"merge": "noisy:1500"}))
    first, *rest = service.client.events(job.id)
    assert first.kind == "Truncated"
    assert first.fields["dropped"] > 1000
    assert len(rest) < 300
    assert rest[-1].message == "Job succeeded"


def test_a_file_name_that_is_no_utf_8_ends_nothing(running: Installation) -> None:
    job = running.wait(running.submit(labels={"merge": "foreign", "publish": "foreign:fail"}))
    running.assert_settled(job)
    assert outcomes(job, "publish") == [AttemptOutcome.RETRIED, AttemptOutcome.SUCCEEDED]
    error = job.stage(StageName.PUBLISH).attempts[0].error
    assert error is not None
    assert (error["code"], error["message"]) == ("upload_failed", "weights-?.bin was not sent")
    assert running.messages(job.id).count("weights-?.bin is left alone") == 3


def test_programs_that_a_stage_started_end_with_it(running: Installation) -> None:
    job = running.submit(labels={"merge": "children:deaf"})
    running.held("merge")
    child = int(running.path("child.pid").read_text())
    running.client.cancel(job.id)
    assert running.wait(job).state is JobState.CANCELLED
    eventually(lambda: not is_alive(child), "child ended")


def test_a_record_that_no_worker_wrote_is_the_jobs_error(service: Installation) -> None:
    job = service.submit()
    service.redis.hset(service.keys.stages(job.id), "prepare:crashes", "many")
    worker = service.start_worker()
    error = eventually(lambda: service.redis.hget(service.keys.job(job.id), "error"), "the job's error")
    assert '"code": "record_invalid"' in error
    assert "invalid literal for int" in error
    assert "supervisor_failed" not in worker.lines, "it is no mistake of the worker's own"
    service.assert_settled(service.wait(service.submit("next")), "next")

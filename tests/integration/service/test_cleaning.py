"""Cleaning after an ended job, and a replay that comes in the middle of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from api_client import Job, JobState, StageName
from config.settings import load_settings
from tests.integration.harness import Installation, eventually
from worker.service.state.transitions import Begun, Taker, Transitions
from worker.service.supervisor.cleaning import Cleaner
from worker.service.supervisor.scratch import remove_scratch
from worker.service.supervisor.scratch_lock import acquire

HOST = "h"


class Interrupted:
    """A connection pool on which something happens between the first answer and what is asked next."""

    def __init__(self, redis: Any, happens: Callable[[], None]) -> None:
        self._redis = redis
        self._happens: Callable[[], None] | None = happens

    def time(self) -> Any:
        answer = self._redis.time()
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        return answer


def cleaner(service: Installation, redis: Any = None) -> Cleaner:
    settings = load_settings({}, host_name=HOST, key_prefix=service.prefix, home=service.directory)
    return Cleaner(settings, redis or service.redis, Transitions(service.redis, service.keys, 30))


def failed_at_once(service: Installation) -> tuple[Job, Path]:
    """A job that ended before a file was finished, and its scratch."""
    job = service.submit()
    service.client.cancel(job.id)
    scratch = service.directory / "scratch"
    scratch.mkdir()
    (scratch / "file").touch()
    service.redis.hset(service.keys.scratch(HOST), job.id, str(scratch))
    return job, scratch


def replay_and_begin(service: Installation, job: Job) -> None:
    service.client.replay(job.id)
    hand = Transitions(service.redis, service.keys, 30)
    begun = hand.begin(job.id, StageName.PREPARE, 1, taker=Taker("w", HOST, pin=True), limits={})
    assert isinstance(begun, Begun)


def test_a_replay_in_the_middle_keeps_its_files(service: Installation) -> None:
    job, scratch = failed_at_once(service)
    cleaner(service, Interrupted(service.redis, lambda: replay_and_begin(service, job))).clean(job.id, scratch)
    assert (scratch / "file").exists()
    assert service.redis.hexists(service.keys.scratch(HOST), job.id)


def test_a_replay_in_the_middle_keeps_the_note_of_its_directory(service: Installation) -> None:
    job, scratch = failed_at_once(service)
    remove_scratch(scratch)
    cleaner(service, Interrupted(service.redis, lambda: replay_and_begin(service, job))).clean(job.id, scratch)
    assert service.redis.hexists(service.keys.scratch(HOST), job.id)


def test_a_directory_in_which_someone_works_is_left_alone(service: Installation) -> None:
    job, scratch = failed_at_once(service)
    lock = acquire(scratch)
    assert lock is not None
    cleaner(service).clean(job.id, scratch)
    assert (scratch / "file").exists()
    os.close(lock)
    cleaner(service).clean(job.id, scratch)
    assert not scratch.exists()
    assert not service.redis.exists(service.keys.scratch(HOST))


def test_an_attempt_waits_for_the_cleaning_and_makes_again_what_it_removed(service: Installation) -> None:
    service.start_worker(max_retries=0)
    job = service.submit(labels={"publish": "transient:1"})
    assert service.wait(job).state is JobState.FAILED
    scratch = service.path(f".trainpack-{job.id}")
    cleaning = acquire(scratch)
    assert cleaning is not None
    service.client.replay(job.id, "quantize")
    attempt = eventually(lambda: running_attempt(service, job), "the attempt has begun")
    remove_scratch(scratch)
    os.close(cleaning)
    service.assert_settled(service.wait(job))
    starts = [line.removeprefix("start ") for line in service.runs() if line.startswith("start")]
    again = ["merge 2", "convert 2", f"quantize {attempt + 1}", "verify 2", "evaluate 2", "publish 2"]
    assert starts[7:] == again


def running_attempt(service: Installation, job: Job) -> int:
    stage = service.client.get(job.id).stage(StageName.QUANTIZE)
    return stage.attempt if stage.state == "running" else 0


def test_the_log_that_a_dead_worker_had_not_kept_is_kept_before_its_directory_goes(service: Installation) -> None:
    worker = service.start_worker()
    job = service.wait(service.submit())
    service.assert_settled(job)
    worker.stop()
    scratch, log = service.path(f".trainpack-{job.id}"), service.path("events.jsonl")
    scratch.mkdir()
    log.unlink()
    service.path(".events.jsonl.deadbeef.tmp").write_text("half")
    cleaner(service).clean(job.id, scratch)
    assert job.id in log.read_text()
    service.assert_settled(job)

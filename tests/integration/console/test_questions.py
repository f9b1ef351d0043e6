"""Questions about files: asked over Redis, answered beside the stage slots, bounded in time."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from api_client import PackagingError
from api_client.contract.errors import ErrorCode
from api_client.ledger.questions import Questions
from tests.integration.console.running import running_console
from tests.integration.harness import Installation, eventually

pytestmark = pytest.mark.integration


def refused(questions: Questions, path: str) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        questions.space(path)
    return caught.value


def left_over(service: Installation) -> list[str]:
    return [key for key in service.redis.keys(f"{service.prefix}:*") if ":question" in key or ":answer" in key]


def test_a_busy_worker_answers_and_keeps_to_its_roots(service: Installation) -> None:
    worker = service.start_worker(slots=1, allowed_roots=service.directory)
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    questions = Questions(service.client, 20)
    space = questions.space(str(service.directory))
    assert space.free_bytes > 0
    assert space.scratch is None, "jobs work beside their outputs"
    assert refused(questions, "/etc").code is ErrorCode.PATH_NOT_ALLOWED
    link = service.directory / "link"
    link.symlink_to("/etc")
    assert refused(questions, str(link)).code is ErrorCode.PATH_NOT_ALLOWED
    assert refused(questions, str(service.directory / ".." / ".." / "etc")).code is ErrorCode.PATH_NOT_ALLOWED
    assert left_over(service) == []
    service.let_go("convert")
    job = service.wait(job)
    assert [len(stage.attempts) for stage in job.stages] == [1] * len(job.stages), "no lease was lost"
    assert worker.stop() == 0


def test_without_a_worker_the_asker_is_told_at_once(service: Installation) -> None:
    started = time.monotonic()
    assert refused(Questions(service.client, 60), "/tmp").code is ErrorCode.QUESTION_UNANSWERED
    assert time.monotonic() - started < 30


def test_a_worker_that_hangs_is_not_waited_for_and_the_late_answer_is_dropped(service: Installation) -> None:
    worker = service.start_worker()
    worker.signal(signal.SIGSTOP)
    error = refused(Questions(service.client, 0.5), "/tmp")
    assert error.code is ErrorCode.QUESTION_UNANSWERED
    assert error.retryable
    worker.signal(signal.SIGCONT)
    eventually(lambda: service.redis.llen(service.keys.named("questions")) == 0, "question taken")
    assert Questions(service.client, 20).space("/tmp").exists
    assert left_over(service) == []


def test_what_a_worker_does_not_understand_is_refused(service: Installation) -> None:
    service.start_worker()
    answer = service.keys.answer("q")
    for question in (
        "{",
        json.dumps({"schema_version": 99, "kind": "space", "parameters": {"path": "/tmp"}}),
        json.dumps({"schema_version": 1, "kind": "weather", "parameters": {}}),
        json.dumps({"schema_version": 1, "kind": "space", "parameters": {"directory": "/tmp"}}),
    ):
        service.redis.set(service.keys.question("q"), question, ex=20)
        service.redis.lpush(service.keys.named("questions"), "q")
        eventually(lambda: service.redis.exists(answer), "answer")
        [(_, fields)] = service.redis.xrange(answer)
        assert json.loads(fields["answer"])["error"]["code"] == "request_invalid"
        service.redis.delete(answer)


def test_more_questions_at_once_than_threads_to_spare_are_refused(service: Installation, tmp_path: Path) -> None:
    worker = service.start_worker(lease_s=60)  # so that it is listed though it hangs
    worker.signal(signal.SIGSTOP)
    with running_console(service.url, service.prefix, question_timeout_s=60) as console, console.client() as http:
        statuses: list[int] = []

        def ask() -> None:
            with console.client() as client:
                statuses.append(client.get("/api/v1/space", params={"path": str(tmp_path)}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        eventually(lambda: statuses.count(429) == 4, "four too many")
        assert http.get("/api/v1/jobs").status_code == 200
        worker.signal(signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] * 8 + [429] * 4
        worker.signal(signal.SIGSTOP)
    with running_console(service.url, service.prefix, question_timeout_s=0.5) as console, console.client() as http:
        assert http.get("/api/v1/space", params={"path": str(tmp_path)}).status_code == 504
    worker.signal(signal.SIGCONT)

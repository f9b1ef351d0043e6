"""What a job failed with, written by one version and read by another: the code keeps its name, class and remedy."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path

from api_client import ErrorClass, ErrorCode, Job, JobState
from api_client.words.language import Language
from tests.integration.console.running import RunningConsole, running_console
from tests.integration.harness import Installation
from tests.integration.upgrades.newer import NEW_CODE, make_newer

CODE = "upload_swallowed"
REMEDY = ErrorCode.UPLOAD_FAILED.row.remedy_en


def told_by_command(service: Installation, job: Job, *options: str) -> str:
    keep = ("TRAINPACK_REDIS_URL", "TRAINPACK_KEY_PREFIX", "TRAINPACK_HOME")
    environment = {k: v for k, v in service.environment().items() if not k.startswith("TRAINPACK_") or k in keep}
    command = [sys.executable, "-m", "api_client.cli", "status", job.id, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return " ".join(done.stdout.split())


def told_by_page(console: RunningConsole, job: Job, language: str) -> str:
    headers = {"Accept": "text/html", "Accept-Language": language}
    with console.client() as client:
        answer = client.get(f"/jobs/{job.id}", headers=headers)
    assert answer.status_code == 200
    return html.unescape(answer.text)


def test_a_code_that_only_the_worker_knows_is_retried_there_and_shown_here(
    service: Installation, tmp_path: Path
) -> None:
    service.start_worker(source=make_newer(tmp_path / "newer", NEW_CODE), max_retries=1)
    retried, failed = (service.submit(name, labels={"merge": f"transient:{n}"}) for name, n in (("a", 1), ("b", 9)))
    service.assert_settled(service.wait(retried), "a")
    job = service.wait(failed)
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert (job.failure.code, job.failure.error_class, job.failure.stage) == (CODE, ErrorClass.TRANSIENT, "merge")
    assert job.failure.told(Language.EN).remedy == REMEDY

    first = service.client.get(retried.id).stages[1].attempts[0].failure
    assert first is not None
    assert (first.code, first.error_class) == (CODE, ErrorClass.TRANSIENT)

    assert f"Error {CODE} no answer to attempt 2 Cause: Another version" in told_by_command(service, job)
    document = json.loads(told_by_command(service, job, "--json"))["error"]
    assert (document["code"], document["class"], document["remedy"]) == (CODE, "transient", REMEDY)
    with running_console(service.url, service.prefix) as console:
        page = told_by_page(console, job, "en")
        assert f"<code>{CODE}</code>" in page
        assert REMEDY in page
        assert "当前版本不认识它" in told_by_page(console, job, "zh")
        with console.client() as client:
            served = client.get(f"/api/v1/jobs/{job.id}").json()["error"]
        assert (served["code"], served["class"], served["remedy"]) == (CODE, "transient", REMEDY)
    assert [each.id for each in service.client.replay_failed(job.created_at, CODE)] == [job.id]
    service.wait(job)


def test_a_failure_that_the_version_before_stored_is_told_as_one_of_now(service: Installation) -> None:
    service.start_worker(max_retries=0)
    job = service.wait(service.submit(labels={"merge": "transient:9"}))
    assert job.error is not None
    before = {key: value for key, value in job.error.items() if key not in ("class", "stage")}
    attempts = service.keys.attempts(job.id)
    (at,) = [n for n, text in enumerate(service.redis.lrange(attempts, 0, -1)) if "error" in json.loads(text)]
    ended = json.loads(service.redis.lrange(attempts, at, at)[0]) | {"error": json.dumps(before)}
    service.redis.lset(attempts, at, json.dumps(ended))
    # for readers of the version before; nobody of this one looks there
    service.redis.hset(service.keys.job(job.id), "error", "{}")
    service.redis.hset(service.keys.stages(job.id), "merge:error", "{}")
    found = service.client.get(job.id)
    assert found.failure == job.failure
    assert found.failure is not None
    assert (found.failure.error_class, found.failure.stage) == (ErrorClass.TRANSIENT, "merge")
    with running_console(service.url, service.prefix) as console, console.client() as client:
        answer = client.get(f"/api/v1/jobs/{job.id}", headers={"Accept-Language": "zh"})
    assert answer.json()["error"] == job.error | {"remedy": ErrorCode.UPLOAD_FAILED.row.remedy_zh}
    assert (answer.headers["content-language"], answer.headers["vary"]) == ("zh", "Accept-Language")
    assert job.stages[1].attempts[0].failure == job.failure

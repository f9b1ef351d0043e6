"""Why a job waits: each reason at a real service, on every face that shows it, and how operators end the waiting."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from datetime import UTC, datetime
from functools import partial

import pytest

from api_client import Job, JobState, PackagingError
from api_client.client import this_user
from api_client.console.metrics import metrics_text
from api_client.contract.waiting import WaitingFor, WaitReason
from api_client.words.language import Language
from tests.integration.cli.conftest import CommandLine
from tests.integration.console.running import running_console
from tests.integration.harness import Installation, eventually

pytestmark = pytest.mark.integration


def reason(service: Installation, job: Job) -> WaitReason | None:
    waiting = service.client.get(job.id).waiting_for
    return waiting.reason if waiting else None


def waits(service: Installation, job: Job, expected: WaitReason) -> WaitingFor:
    eventually(lambda: reason(service, job) is expected, f"it waits for {expected}")
    found = service.client.get(job.id).waiting_for
    assert found is not None
    assert found.why
    assert found.frees
    assert found.told(Language.ZH).why != found.why
    return found


def waiting_series(service: Installation) -> dict[str, float]:
    lines = metrics_text(service.client).decode().splitlines()
    rows = (line.split() for line in lines if line.startswith("trainpack_stages_waiting{"))
    return {name.split('"')[1]: float(value) for name, value in rows}


def test_a_label_limit_is_seen_changed_and_noted(service: Installation) -> None:
    service.start_worker(slots=3, label_limits='{"team": 1}', requeue_after_s=600)
    first = service.submit("first", labels={"team": "red", "merge": "hold"})
    service.held("merge", output="first")
    second = service.submit("second", labels={"team": "red"})
    third = service.submit("third", labels={"team": "red"})
    found = waits(service, second, WaitReason.LABEL_LIMIT)
    waits(service, third, WaitReason.LABEL_LIMIT)
    assert (found.what, found.limit) == ("team=red", 1)
    assert found.since is not None
    assert (datetime.now(UTC) - found.since).total_seconds() < 60
    assert [job.waiting_for and job.waiting_for.reason for job in service.client.list(labels={"team": "red"})] == [
        WaitReason.LABEL_LIMIT,
        WaitReason.LABEL_LIMIT,
        None,
    ]
    assert waiting_series(service)["label_limit"] == 2
    (limit,) = service.client.limits()
    assert (limit.name, limit.limit, limit.set_here, limit.waiting) == ("team", 1, False, 2)

    service.client.set_limit("team=red", 2, by="ops")
    done = [eventually(partial(finished, service, job), "it has a place now") for job in (second, third)]
    assert [job and job.state for job in done] == [JobState.SUCCEEDED] * 2
    assert finished(service, first) is None, "the first one still runs"
    assert {each.name: each.limit for each in service.client.limits()} == {"team": 1, "team=red": 2}
    change = service.client.changes()[0]
    assert (change.by, change.action, change.name, change.value) == ("ops", "limit", "team=red", "2")
    service.client.set_limit("team=red", None, by="ops")
    assert [each.name for each in service.client.limits()] == ["team"]
    service.let_go("merge", "first")
    service.assert_settled(service.wait(first), "first")
    assert service.redis.keys(f"{service.prefix}:held:*") == []


def finished(service: Installation, job: Job) -> Job | None:
    found = service.client.get(job.id)
    return found if found.finished else None


def test_no_worker_a_full_one_and_a_stopping_one(service: Installation) -> None:
    job = service.submit("job", labels={"merge": "hold"})
    assert waits(service, job, WaitReason.NO_WORKER).what == "packaging.io"
    assert waiting_series(service)["no_worker"] == 1
    worker = service.start_worker(drain_s=20)
    service.held("merge", output="job")
    behind = service.submit("behind")
    waits(service, behind, WaitReason.BUSY)
    os.kill(service.stage_pid("merge", output="job"), signal.SIGSTOP)  # it reaches no safe point
    worker.signal(signal.SIGTERM)
    waits(service, behind, WaitReason.DRAINING)
    os.kill(service.stage_pid("merge", output="job"), signal.SIGCONT)
    worker.process.wait(25)
    assert waits(service, job, WaitReason.HOST_AWAY).what
    service.let_go("merge", "job")
    service.start_worker()
    service.assert_settled(service.wait(job), "job")
    service.assert_settled(service.wait(behind), "behind")


@pytest.mark.parametrize("place", ["queue:packaging.io", "host:alpha"])
def test_a_paused_queue_or_host_begins_nothing_until_it_is_resumed(service: Installation, place: str) -> None:
    service.start_worker(slots=2, host_name="alpha", requeue_after_s=600)
    running = service.submit("running", labels={"merge": "hold"})
    service.held("merge", output="running")
    service.client.pause(place, by="ops")
    waiting = service.submit("waiting")  # its message comes while the worker may still take from the queue
    assert waits(service, waiting, WaitReason.PAUSED).what == place
    eventually(lambda: '"queue_paused"' in service.workers[0].lines, "the worker takes no more from it")
    later = service.submit("later")
    waits(service, later, WaitReason.PAUSED)
    service.let_go("merge", "running")
    if place.startswith("queue"):
        service.assert_settled(service.wait(running), "running")  # other queues go on
    else:
        assert waits(service, running, WaitReason.PAUSED).what == place
    assert service.runs("waiting") == service.runs("later") == []
    assert [(pause.name, pause.by) for pause in service.client.pauses()] == [(place, "ops")]
    paused = waiting_series(service)["paused"]
    assert paused == (2 if place.startswith("queue") else 3)

    service.client.resume(place, by="ops")
    for name, job in (("waiting", waiting), ("later", later), ("running", running)):
        service.assert_settled(service.wait(job), name)
    assert [(change.action, change.name) for change in service.client.changes()] == [
        ("resume", place),
        ("pause", place),
    ]


def test_a_retry(service: Installation) -> None:
    service.start_worker(retry_base_s=30, retry_max_s=60)
    job = service.submit(labels={"merge": "transient:1"})
    found = waits(service, job, WaitReason.RETRY_AT)
    assert found.until is not None
    assert found.until > datetime.now(UTC)
    assert waiting_series(service)["retry_at"] == 1


def test_a_job_that_only_a_newer_worker_can_run(service: Installation) -> None:
    job = service.submit()
    service.redis.hset(service.keys.job(job.id), "schema_version", 2)
    service.start_worker()
    assert waits(service, job, WaitReason.NEWER_WORKER).what == "2"
    eventually(lambda: waiting_series(service)["newer_worker"] == 1, "it is counted")
    service.redis.hset(service.keys.job(job.id), "schema_version", 1)
    service.assert_settled(service.wait(job))
    assert waiting_series(service)["newer_worker"] == 0


def test_another_job_that_publishes_into_the_same_directory(service: Installation) -> None:
    output = service.path("", "out")
    output.mkdir()
    directory = os.open(output, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)  # as the other job's publishing holds it
    service.start_worker(stage_registry="tests.integration.small_stages:REAL_PUBLISH")
    job = service.submit()
    assert waits(service, job, WaitReason.PUBLISHING).what == str(output)
    assert waiting_series(service)["publishing"] == 1
    os.close(directory)
    assert service.wait(job).waiting_for is None
    assert waiting_series(service)["publishing"] == 0


def test_words_that_nobody_wrote_say_nothing(service: Installation) -> None:
    job = service.submit()
    stages = service.keys.stages(job.id)
    for field, text in (("held", "publishing:*"), ("held_for", "x" * 10_000), ("queue", "\n" * 5000)):
        service.redis.hset(stages, f"prepare:{field}", text)
    waiting = service.client.get(job.id).waiting_for
    assert waiting is not None
    assert waiting.reason is WaitReason.NO_WORKER
    assert len(waiting.what) <= 400
    service.redis.hset(stages, mapping={"prepare:held": "label_limit", "prepare:held_limit": "many"})
    with pytest.raises(PackagingError) as caught:
        service.client.get(job.id)
    assert caught.value.code == "record_invalid"


@pytest.mark.parametrize(("label", "limit"), [("", 1), ("team", 0), ("team", -1), ("a" * 300, 1), ("t\nm", 1)])
def test_limits_that_make_no_sense_are_refused(service: Installation, label: str, limit: int) -> None:
    with pytest.raises(PackagingError) as caught:
        service.client.set_limit(label, limit)
    assert caught.value.code == "request_invalid"
    assert service.client.limits() == []


def test_every_face_says_why_and_lets_operators_change_it(service: Installation) -> None:
    trainpack = CommandLine(service)
    job = trainpack.submit("job", team="red")
    for command in (["status", job], ["list"], ["status"]):
        assert re.search("no worker", trainpack(*command).out), command
    assert "没有 worker 从 packaging.io 取任务" in trainpack("status", job, LANG="zh_CN.UTF-8").out
    assert trainpack("status", job, "--json").document["waiting_for"]["reason"] == "no_worker"

    assert trainpack("limits", "team", "2").code == 0
    assert trainpack("limits", "team", "two").code == 2
    document = trainpack("limits", "--json").document
    assert (document["limits"][0]["name"], document["limits"][0]["limit"]) == ("team", 2)
    assert document["changes"][0]["by"] == this_user()
    assert trainpack("pause", "queue:packaging.io").code == 0
    assert "is paused" in trainpack("status", job).out
    assert "queue:packaging.io" in trainpack("pause").out
    assert trainpack("pause", "packaging.io").code == 2
    assert trainpack("resume", "queue:packaging.io", "--json").document == {"paused": []}

    with running_console(service.url, service.prefix) as console, console.client() as http:
        told = http.get(f"/api/v1/jobs/{job}", headers={"accept-language": "zh"}).json()["waiting_for"]
        assert (told["reason"], told["why"]) == ("no_worker", "没有 worker 从 packaging.io 取任务")
        assert http.get("/api/v1/jobs").json()["jobs"][0]["waiting_for"]["reason"] == "no_worker"
        assert http.put("/api/v1/limits/team=red", json={"limit": 5}).status_code == 200
        assert http.put("/api/v1/limits/team", json={"limit": 0}).status_code == 422
        assert http.delete("/api/v1/limits/team").json()["limits"][0]["name"] == "team=red"
        assert http.put("/api/v1/pauses/host:h1").json()["paused"][0]["name"] == "host:h1"
        assert http.put("/api/v1/pauses/nowhere").status_code == 422
        assert http.get("/api/v1/pauses").json()["paused"][0]["by"]
        assert http.delete("/api/v1/pauses/host:h1").json() == {"paused": []}
        actions = [change["action"] for change in http.get("/api/v1/changes").json()["changes"]]
        assert actions == ["resume", "pause", "limit", "limit", "resume", "pause", "limit"]
        page = http.get(f"/jobs/{job}").text
        assert "no worker takes from packaging.io" in page
        csrf = re.search(r'name="csrf_token" value="([^"]*)"', http.get("/queues").text)
        assert csrf is not None
        posted = {"csrf_token": csrf[1], "place": "queue:packaging.heavy", "action": "pause"}
        assert http.post("/queues/pause", data=posted).status_code == 303
        limited = {"csrf_token": csrf[1], "label": "team", "limit": "4"}
        assert http.post("/queues/limit", data=limited).status_code == 303
        refused = http.post("/queues/limit", data=limited | {"limit": "many"})
        assert refused.status_code == 422
        assert "is no number" in refused.text
        shown = http.get("/queues").text
        assert "queue:packaging.heavy" in shown
        assert "resume" in shown
        assert ">4 ·" in shown

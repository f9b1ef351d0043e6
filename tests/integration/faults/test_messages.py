"""Messages doubled, late, lost, unreadable; and two reapers. The plan in Redis decides, so none of it matters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from api_client import AttemptOutcome, JobState, PackagingError, StageName
from api_client.ledger.messages import MessageSender, StageMessage, missing_task_ids, queue_keys
from tests.integration.harness import Installation, eventually, outcomes
from worker.service.state.decisions import RetryPolicy, Spent, after_rescue
from worker.service.state.transitions import Begun, Ignored, Taker, Transitions
from worker.stages.context import StageResult

PLAN = ["prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish"]


@pytest.fixture
def sender(service: Installation) -> Iterator[MessageSender]:
    sender = MessageSender(service.url, service.keys, 5)
    yield sender
    sender.close()


def message(job_id: str, stage: str, attempt: int, queue: str = "packaging.io") -> StageMessage:
    return StageMessage(job_id, StageName(stage), attempt, queue, 5)


def queued_messages(service: Installation, queue: str) -> int:
    return sum(service.redis.llen(key) for key in queue_keys(service.keys, queue))


@pytest.mark.fault("messages doubled, late, and for stages that are not due")
def test_the_same_message_many_times_runs_the_stage_once(service: Installation, sender: MessageSender) -> None:
    service.start_worker(slots=3)
    job = service.submit(labels={"merge": "hold", "convert": "hold"})
    service.held("merge")
    for stage, attempt in [("prepare", 1), ("prepare", 2), ("merge", 1), ("merge", 2), ("publish", 1)] * 3:
        assert sender.send(message(job.id, stage, attempt))
    service.let_go("merge")
    service.held("convert")
    for _ in range(3):
        sender.send(message(job.id, "merge", 1))
        sender.send(message(job.id, "convert", 1))
    service.let_go("convert")
    job = service.wait(job)
    service.assert_settled(job)
    assert service.runs() == [f"{word} {stage} 1" for stage in PLAN for word in ("start", "end")]


@pytest.mark.fault("the message is lost between broker and worker")
def test_a_lost_message_is_sent_again(service: Installation) -> None:
    job = service.submit(labels={"prepare": "noisy:1"})
    assert queued_messages(service, "packaging.io") == 1
    service.redis.delete(*queue_keys(service.keys, "packaging.io"))
    worker = service.start_worker()
    service.assert_settled(service.wait(job))
    assert "message_resent" in worker.lines


def test_messages_of_waiting_jobs_do_not_pile_up(service: Installation) -> None:
    service.start_worker(requeue_after_s=0.3)
    service.submit("busy", labels={"prepare": "hold"})
    service.held("prepare", output="busy")
    jobs = [service.submit(f"waiting-{number}") for number in range(5)]
    lost = jobs[2].id
    for key in queue_keys(service.keys, "packaging.io"):
        for text in service.redis.lrange(key, 0, -1):
            if lost in text:
                service.redis.lrem(key, 1, text)
    eventually(
        lambda: not missing_task_ids(service.redis, service.keys, "packaging.io", {f"{lost}:prepare:1"}), "sent again"
    )
    threading.Event().wait(1.5)  # Several times the age at which a message is looked for.
    assert queued_messages(service, "packaging.io") == 5
    service.let_go("prepare", "busy")
    assert all(service.wait(job).state is JobState.SUCCEEDED for job in jobs)


def test_a_message_nobody_can_read_is_dropped(service: Installation, sender: MessageSender) -> None:
    worker = service.start_worker()
    for body in ({}, {"schema_version": 99, "job_id": "x", "stage": "merge", "attempt": 1}, {"stage": 5}):
        sender._app.send_task("trainpack.run_stage", kwargs=body, queue="packaging.heavy", retry=False)
    eventually(lambda: worker.lines.count("message_unreadable") == 2, "two complaints")
    assert worker.lines.count('"event": "job_newer"') == 1
    service.assert_settled(service.wait(service.submit()))


@pytest.mark.fault("something that is no message in a queue")
def test_what_is_no_message_is_dropped_beside_a_running_stage(service: Installation) -> None:
    worker = service.start_worker(slots=2, drain_s=600)
    job = service.submit(labels={"convert": "hold"})
    service.held("convert")
    key = queue_keys(service.keys, "packaging.io")[0]
    service.redis.rpush(key, "no message at all")
    eventually(lambda: not service.redis.exists(key) and "message_unreadable" in worker.lines, "dropped, and said")
    service.let_go("convert")
    job = service.wait(job)
    service.assert_settled(job)
    assert outcomes(job, "convert") == [AttemptOutcome.SUCCEEDED]
    assert worker.process.poll() is None


@pytest.mark.fault("the request is another version's")
def test_a_request_of_another_version_fails_its_job_and_nothing_else(service: Installation) -> None:
    job = service.submit()
    request = {"base_model": "/b", "compression": "zip", "labels": {"prepare": "noisy:1"}}
    service.redis.hset(service.keys.job(job.id), "request", json.dumps(request))
    service.start_worker()
    job = service.wait(job)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "unknown_field"
    assert "'compression'" in job.error["message"]
    assert [found.id for found in service.client.list()] == [job.id]


def test_a_job_of_a_newer_version_is_left_alone(service: Installation) -> None:
    job = service.submit()
    service.redis.hset(service.keys.job(job.id), "schema_version", "99")
    service.start_worker(log_level="debug")
    service.assert_settled(service.wait(service.submit("other")), "other")
    assert service.client.get(job.id).state is JobState.QUEUED


@pytest.mark.fault("eight reapers at once")
def test_two_reapers_rescue_once(service: Installation) -> None:
    service.submit(labels={"prepare": "noisy:1"})
    hands = [Transitions(service.redis, service.keys, 1.5) for _ in range(8)]
    job = service.client.list()[0]
    begun = hands[0].begin(job.id, StageName.PREPARE, 1, taker=Taker("w", "h", pin=False), limits={})
    assert isinstance(begun, Begun)
    [(member, until)] = hands[0].running().items()
    running = hands[0].running_stage(member, until)
    assert running is not None
    decision = after_rescue("w", Spent(), RetryPolicy(5, 3, 1, 2))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda hand: hand.end_attempt(running.lease, decision, until), hands))
    assert {answer.message.attempt for answer in answers if answer and answer.message} == {2}
    job = service.client.get(job.id)
    assert [a.outcome for a in job.stage(StageName.PREPARE).attempts] == [AttemptOutcome.RESCUED]
    assert sum("rescued" in text for text in service.messages(job.id)) == 1
    assert service.redis.zcard(service.keys.named("sent")) == 1


def test_a_lease_that_moved_is_not_rescued(service: Installation) -> None:
    job = service.submit()
    hand = Transitions(service.redis, service.keys, 1.5)
    begun = hand.begin(job.id, StageName.PREPARE, 1, taker=Taker("w", "h", pin=False), limits={})
    assert isinstance(begun, Begun)
    [(member, until)] = hand.running().items()
    eventually(lambda: hand.renew(begun.lease) == "ok" and hand.running()[member] != until, "the lease moves")
    decision = after_rescue("w", Spent(), RetryPolicy(5, 3, 1, 2))
    assert hand.end_attempt(begun.lease, decision, until) is None
    again = hand.begin(job.id, StageName.PREPARE, 2, taker=Taker("x", "h", pin=False), limits={})
    assert isinstance(again, Ignored)


def test_one_of_many_takes_a_stage(service: Installation) -> None:
    job = service.submit()
    hand = Transitions(service.redis, service.keys, 1.5)

    def take(number: int) -> bool:
        begun = hand.begin(job.id, StageName.PREPARE, 1, taker=Taker(f"w{number}", "h", pin=False), limits={})
        return isinstance(begun, Begun)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(40))) == 1


def test_only_one_worker_reaps(service: Installation) -> None:
    workers = [service.start_worker() for _ in range(2)]
    names = {worker.name for worker in service.client.workers()}
    leader = eventually(lambda: service.redis.get(service.keys.named("reaper")), "a leader")
    assert leader in names
    pid = next(info.pid for info in service.client.workers() if info.name == leader)
    next(worker for worker in workers if worker.pid == pid).stop()
    other = eventually(lambda: service.redis.get(service.keys.named("reaper")), "another leader")
    assert other in names - {leader}


def test_an_old_token_writes_nothing(service: Installation) -> None:
    job = service.submit()
    hand = Transitions(service.redis, service.keys, 1.5)
    begun = hand.begin(job.id, StageName.PREPARE, 1, taker=Taker("w", "h", pin=False), limits={})
    assert isinstance(begun, Begun)
    hand.end_attempt(begun.lease, after_rescue("w", Spent(), RetryPolicy(5, 3, 1, 2)))
    newer = hand.begin(job.id, StageName.PREPARE, 2, taker=Taker("x", "h", pin=False), limits={})
    assert isinstance(newer, Begun)
    before = service.client.get(job.id)
    assert hand.renew(begun.lease) == "lost"
    assert hand.complete(begun.lease, StageResult(), "late") is None
    assert hand.relay(begun.lease, [], None) is False
    assert hand.rewind(begun.lease, [], "late") is None
    assert service.client.get(job.id) == before
    with pytest.raises(PackagingError) as caught:
        service.client.replay(job.id)
    assert caught.value.code == "job_running"

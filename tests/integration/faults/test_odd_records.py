"""Records as they stand after someone removed a key or set the server's clock back: no other job waits for that."""

from __future__ import annotations

import pytest

from api_client import AttemptOutcome, ErrorCode, Job, PackagingError, StageName
from api_client.ledger.messages import MessageSender, missing_task_ids, queue_keys
from config.settings import load_settings
from tests.integration.harness import Installation, eventually, outcomes
from worker.service.metrics.observer import Observer
from worker.service.reaper import Reaper
from worker.service.state.decisions import RetryPolicy, Spent, after_error
from worker.service.state.transitions import Begun, Lease, Taker, Transitions
from worker.service.supervisor.heart import Heart
from worker.stages.context import StageResult

pytestmark = pytest.mark.short_lease
HOUR_MS = 3_600_000


def begun(service: Installation, job: Job) -> Lease:
    """A lease of a worker that is gone."""
    hand = Transitions(service.redis, service.keys, 1.5)
    found = hand.begin(job.id, StageName.PREPARE, 1, taker=Taker("gone", "gone", pin=False), limits={})
    assert isinstance(found, Begun)
    return found.lease


def test_a_job_that_vanished_keeps_nobody_from_being_rescued(service: Installation) -> None:
    vanished, other = service.submit("vanished"), service.submit("other")
    begun(service, vanished)
    begun(service, other)
    service.redis.delete(service.keys.job(vanished.id))
    worker = service.start_worker()
    done = service.wait(other)
    service.assert_settled(done, "other")
    assert outcomes(done, "prepare") == [AttemptOutcome.RESCUED, AttemptOutcome.SUCCEEDED]
    eventually(lambda: service.redis.zcard(service.keys.named("leases")) == 0, "its lease is forgotten")
    assert "reaper_failed" not in worker.lines
    service.redis.delete(service.keys.stages(vanished.id), service.keys.attempts(vanished.id))
    service.redis.delete(service.keys.events(vanished.id))


def test_a_record_that_cannot_be_read_keeps_nobody_from_being_rescued(service: Installation) -> None:
    odd, other = service.submit("odd"), service.submit("other")
    begun(service, odd)
    begun(service, other)
    service.redis.hset(service.keys.stages(odd.id), "prepare:crashes", "many")
    worker = service.start_worker()
    service.assert_settled(service.wait(other), "other")
    assert "reaper_failed" in worker.lines


def test_what_redis_refuses_is_logged(service: Installation) -> None:
    service.redis.rpush(service.keys.named("clock"), "no time at all")
    worker = service.start_worker()
    eventually(lambda: "redis_refused" in worker.lines and "WRONGTYPE" in worker.lines, "a line in the log")
    service.redis.delete(service.keys.named("clock"))
    service.assert_settled(service.wait(service.submit()))


def test_something_foreign_in_a_queue_keeps_no_message_from_being_sent_again(service: Installation) -> None:
    job = service.submit()
    [key] = [key for key in queue_keys(service.keys, "packaging.io") if service.redis.exists(key)]
    service.redis.delete(key)
    service.redis.rpush(queue_keys(service.keys, "packaging.io")[0], "no message at all", '{"headers": null}')
    hand = Transitions(service.redis, service.keys, 1.5)
    [message] = hand.overdue(0)
    assert message.job_id == job.id
    assert missing_task_ids(service.redis, service.keys, "packaging.io", {"a:b:1"}) == {"a:b:1"}


@pytest.mark.fault("Valkey's clock goes back by an hour: a lost message, a delayed retry")
def test_a_server_whose_clock_is_set_back_makes_nothing_wait(service: Installation) -> None:
    """As if the clock had been an hour ahead when the first message was sent and the second job's retry was set."""
    labels = {"prepare": "noisy:1"}
    lost, delayed = service.submit("lost", labels=labels), service.submit("delayed", labels=labels)
    error = PackagingError(ErrorCode.UPLOAD_FAILED, "no answer")
    decision = after_error(error, Spent(), RetryPolicy(5, 3, base_s=0.1, max_s=0.1), jitter=1)
    hand = Transitions(service.redis, service.keys, 1.5)
    assert hand.set_clock() == 0
    assert hand.end_attempt(begun(service, delayed), decision) is not None
    for key in queue_keys(service.keys, "packaging.io"):
        service.redis.delete(key)
    for name in ("sent", "wake"):
        for member in service.redis.zrange(service.keys.named(name), 0, -1):
            service.redis.zincrby(service.keys.named(name), HOUR_MS, member)
    due = service.redis.hget(service.keys.stages(delayed.id), "prepare:not_before")
    service.redis.hset(service.keys.stages(delayed.id), "prepare:not_before", int(due) + HOUR_MS)
    service.redis.incrby(service.keys.named("clock"), HOUR_MS)

    worker = service.start_worker()

    for name, job in (("lost", lost), ("delayed", delayed)):
        service.assert_settled(service.wait(job), name)
    assert worker.lines.count("clock_went_back") == 1


def test_a_server_whose_clock_leaps_ahead_gives_no_host_up(service: Installation) -> None:
    """The first look after the leap, before any heartbeat: every host seems to have been silent for an hour."""
    hand = Transitions(service.redis, service.keys, 30)
    job = service.submit()
    taken = hand.begin(job.id, StageName.PREPARE, 1, taker=Taker("w", "alive", pin=True), limits={})
    assert isinstance(taken, Begun)
    service.redis.zadd(service.keys.named("hosts"), {"alive": service.redis.time()[0] * 1000 - HOUR_MS})
    assert hand.complete(taken.lease, StageResult(), "done") is not None
    settings = load_settings({}, key_prefix=service.prefix, redis_url=service.url, home=service.directory)
    sender = MessageSender(service.url, service.keys, 5)
    Reaper(settings, "r", service.redis, hand, sender, observer=Observer()).tick()
    sender.close()
    assert service.redis.hget(service.keys.stages(job.id), "merge:queue") == "packaging.host.alive"
    assert service.redis.zscore(service.keys.named("hosts"), "alive") is not None
    service.client.cancel(job.id)


def test_a_heart_goes_on_after_a_mistake_of_its_own(service: Installation) -> None:
    lease = begun(service, service.submit())
    hand = Transitions(service.redis, service.keys, 30)

    def beat() -> None:
        raise ValueError("a mistake")

    heart = Heart(hand, 0.05, 60, beat, observer=Observer())
    heart.hold(lease)
    heart.start()
    seen: set[str] = set()

    def moved() -> bool:
        seen.update(hand.running().values())
        return len(seen) > 3

    eventually(moved, "renewed again and again")
    heart.stop()

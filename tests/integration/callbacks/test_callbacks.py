"""Callbacks of real jobs on real workers to a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from api_client import Job, JobState, PackagingError
from api_client.contract.callbacks import DELIVERY_HEADER, verify
from tests.integration.harness import Installation, eventually
from tests.unit.callbacks.receiver import Got, Receiver
from worker.service.state.transitions import Transitions

SECRET = "a secret that both sides hold"
SETTINGS: dict[str, Any] = {"callback_secret": SECRET, "callback_allow_private": "true", "callback_retry_s": 0.05}
ODD_BUT_DELIVERED = ("an entry that names no job", "a count that is no number")
"""Nothing that the announcement says is missing there."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


def announced(receiver: Receiver, count: int = 1) -> list[Got]:
    eventually(lambda: len(receiver.got) >= count, f"{count} callbacks")
    return receiver.got


def logged(service: Installation, job_id: str, start: str) -> str:
    """The job's log entry that begins so, once it is there."""
    return eventually(
        lambda: next((m for m in service.messages(job_id) if m.startswith(start)), ""), f"{start} in the log"
    )


def test_every_end_is_announced_and_signed(service: Installation, receiver: Receiver) -> None:
    service.start_worker(**SETTINGS)
    good = service.submit("good", callback_url=receiver.url("/done?run=1"), labels={"run": "1"})
    bad = service.submit("bad", callback_url=receiver.url(), labels={"merge": "permanent"})
    gone = service.submit("gone", callback_url=receiver.url(), labels={"merge": "hold"})
    service.held("merge", output="gone")
    service.client.cancel(gone.id)

    by_job = {json.loads(got.body)["job"]["id"]: got for got in announced(receiver, 3)}
    assert all(verify(SECRET, got.headers, got.body) for got in by_job.values())
    assert not any(verify("some other secret", got.headers, got.body) for got in by_job.values())
    bodies = {job_id: json.loads(got.body) for job_id, got in by_job.items()}
    assert {job_id: body["job"]["state"] for job_id, body in bodies.items()} == {
        good.id: "succeeded",
        bad.id: "failed",
        gone.id: "cancelled",
    }
    assert by_job[good.id].path == "/done?run=1"
    assert bodies[good.id]["event"] == "job.finished"
    assert bodies[good.id]["delivery"] == by_job[good.id].headers[DELIVERY_HEADER.lower()] == f"{good.id}.1"
    assert bodies[good.id]["job"]["labels"] == {"run": "1"}
    outputs = {artifact.name: artifact.sha256 for artifact in service.client.outputs(good.id)}
    assert {o["name"]: o["sha256"] for o in bodies[good.id]["job"]["outputs"]} == outputs
    assert bodies[bad.id]["job"]["error"]["code"] == "base_model_invalid"
    assert bodies[bad.id]["job"]["error"]["stage"] == "merge"
    for job in (good, bad, gone):
        logged(service, job.id, "Callback delivered")
    assert service.client.counts().callbacks == 0
    assert len(receiver.got) == 3


def test_a_failing_receiver_is_tried_again_under_the_same_id(service: Installation, receiver: Receiver) -> None:
    service.start_worker(**SETTINGS)
    receiver.answers += [500, 503]
    job = service.submit(callback_url=receiver.url())
    tries = announced(receiver, 3)
    assert len({got.headers[DELIVERY_HEADER.lower()] for got in tries}) == 1
    assert len({got.body for got in tries}) == 1
    logged(service, job.id, "Callback delivered")
    delivery = service.client.get(job.id).callback
    assert delivery is not None
    assert (delivery.state, delivery.tries) == ("delivered", 3)
    assert "answered 500" in logged(service, job.id, "Callback not delivered")
    assert service.client.get(job.id).state is JobState.SUCCEEDED


def test_it_is_given_up_at_last_and_the_job_stays_as_it_ended(service: Installation, receiver: Receiver) -> None:
    service.start_worker(**SETTINGS, callback_tries=3)
    receiver.answers += [500] * 9
    job = service.submit(callback_url=receiver.url())
    eventually(lambda: any("given up" in m for m in service.messages(job.id)), "given up")
    assert len(receiver.got) == 3
    assert service.client.counts().callbacks == 0
    ended = service.client.get(job.id)
    assert ended.state is JobState.SUCCEEDED
    assert ended.callback is not None
    assert (ended.callback.state, ended.callback.tries) == ("given_up", 3)


@pytest.mark.parametrize(("status", "reason"), [(None, "not public"), (302, "redirects are not followed")])
def test_private_addresses_and_redirects_are_refused(
    service: Installation, receiver: Receiver, status: int | None, reason: str
) -> None:
    service.start_worker(**SETTINGS | {"callback_allow_private": "true" if status else "false"})
    receiver.answers += [status or 200]
    if status is None:
        with pytest.raises(PackagingError, match="is not public, and the workers deliver to public addresses only"):
            service.submit(callback_url=receiver.url())
        # as a name would be, of which only the worker knows where it leads
        service.redis.hset(service.keys.named("config"), "callbacks_private", "1")
    job = service.submit(callback_url=receiver.url())
    entry = logged(service, job.id, "Callback not delivered")
    assert reason in entry
    assert "given up" in entry
    assert len(receiver.got) == (1 if status else 0)
    assert service.client.get(job.id).state is JobState.SUCCEEDED


def test_a_hanging_receiver_holds_nobody_up(service: Installation, receiver: Receiver) -> None:
    worker = service.start_worker(**SETTINGS, callback_timeout_s=30)
    receiver.open.clear()
    first = service.submit("first", callback_url=receiver.url())
    announced(receiver)
    assert service.wait(service.submit("second")).state is JobState.SUCCEEDED
    assert service.wait(first).state is JobState.SUCCEEDED
    assert worker.stop() == 0
    assert service.client.counts().callbacks == 1


def test_it_survives_the_worker(service: Installation, receiver: Receiver) -> None:
    # Too slow a retry to come while the first worker lives.
    worker = service.start_worker(**SETTINGS | {"callback_retry_s": 3600})
    receiver.answers.append(500)
    job = service.submit(callback_url=receiver.url())
    logged(service, job.id, "Callback not delivered")
    worker.kill()
    service.start_worker(**SETTINGS)
    # What an hour would do.
    service.redis.zadd(service.keys.named("callbacks"), {f"{job.id}|1": 0})
    assert len(announced(receiver, 2)) == 2
    logged(service, job.id, "Callback delivered")


def test_a_try_whose_worker_died_is_made_again(service: Installation, receiver: Receiver) -> None:
    worker = service.start_worker(**SETTINGS, callback_timeout_s=20)
    receiver.open.clear()
    job = service.submit(callback_url=receiver.url())
    announced(receiver)
    worker.kill()
    [(member, due)] = service.redis.zrange(service.keys.named("callbacks"), 0, -1, withscores=True)
    assert due > service.client.get(job.id).created_at.timestamp() * 1000
    service.redis.zadd(service.keys.named("callbacks"), {member: 0})  # The claim lapses.
    receiver.open.set()
    service.start_worker(**SETTINGS)
    assert len({got.headers[DELIVERY_HEADER.lower()] for got in announced(receiver, 2)}) == 1


def test_a_replayed_job_announces_its_new_end(service: Installation, receiver: Receiver) -> None:
    service.start_worker(**SETTINGS)
    job = service.submit(callback_url=receiver.url(), labels={"merge": "transient:9"})
    assert json.loads(announced(receiver)[0].body)["job"]["state"] == "failed"
    service.client.replay(job.id)
    second = announced(receiver, 2)[1]
    assert second.headers[DELIVERY_HEADER.lower()] == f"{job.id}.2"


def test_an_end_that_a_replay_undid_is_not_announced(service: Installation, receiver: Receiver) -> None:
    job = service.submit(callback_url=receiver.url())
    service.client.cancel(job.id)
    service.client.replay(job.id)
    assert service.client.counts().callbacks == 1
    service.start_worker(**SETTINGS)
    assert service.wait(job).state is JobState.SUCCEEDED
    [got] = announced(receiver)
    assert json.loads(got.body)["delivery"] == f"{job.id}.2"
    logged(service, job.id, "Callback dropped")


def spoil(service: Installation, how: str, job: Job) -> None:
    """Make a record of the callbacks' queue, or the job behind it, what nobody can deliver."""
    redis, keys = service.redis, service.keys
    if how == "an entry that names no job":
        redis.zadd(keys.named("callbacks"), {"no announcement at all": 0})
    elif how == "a job of another type":
        redis.delete(keys.job(job.id))
        redis.set(keys.job(job.id), "no job at all")
    elif how == "a log of another type":
        redis.delete(keys.events(job.id))
        redis.set(keys.events(job.id), "no log at all")
    elif how == "an address that is no text":
        redis.hset(keys.job(job.id), "callback_url", b"http://\xff\xfe/")
    elif how == "a count that is no number":
        redis.hset(keys.job(job.id), "callback_tries", "many")
    else:
        redis.hset(keys.job(job.id), "plan", "no list at all")


@pytest.mark.parametrize(
    "how",
    [
        "an entry that names no job",
        "a job of another type",
        "a log of another type",
        "an address that is no text",
        "a count that is no number",
        "a job that cannot be read",
    ],
)
def test_one_odd_record_holds_up_no_later_delivery(service: Installation, receiver: Receiver, how: str) -> None:
    odd = service.submit("odd", callback_url=receiver.url("/odd"))
    service.client.cancel(odd.id)
    spoil(service, how, odd)
    worker = service.start_worker(**SETTINGS, callback_tries=2)
    for number in range(2):
        job = service.submit(f"later-{number}", callback_url=receiver.url("/later"))
        logged(service, job.id, "Callback delivered")
    eventually(lambda: service.client.counts().callbacks == 0, "the odd one is settled as well")
    assert [got.path for got in receiver.got].count("/later") == 2
    assert ("/odd" in [got.path for got in receiver.got]) == (how in ODD_BUT_DELIVERED)
    assert worker.process.poll() is None
    service.redis.delete(service.keys.job(odd.id), service.keys.events(odd.id))


def test_without_a_secret_the_request_is_refused(service: Installation, receiver: Receiver) -> None:
    service.start_worker()
    with pytest.raises(PackagingError) as caught:
        service.submit(callback_url=receiver.url())
    assert caught.value.code == "callbacks_off"
    assert service.client.list() == []
    assert service.wait(service.submit()).state is JobState.SUCCEEDED


def test_an_expired_job_leaves_no_announcement(service: Installation, receiver: Receiver) -> None:
    job = service.submit(callback_url=receiver.url())
    service.client.cancel(job.id)
    assert service.client.counts().callbacks == 1
    service.redis.zadd(service.keys.named("expiry"), {job.id: 0})
    assert Transitions(service.redis, service.keys, 30).expire() == [job.id]
    counts = service.client.counts()
    assert (counts.callbacks, sum(counts.jobs.values())) == (0, 0)

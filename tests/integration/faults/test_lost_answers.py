"""Redis does what it was asked and the answer never arrives: asking again has one effect, and the same answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_client import AttemptOutcome, JobState, StageName
from api_client.ledger.scripts import Script
from tests.integration.faults.wire import Wire
from tests.integration.harness import Installation, outcomes
from worker.service.state.transitions import Begun, Ignored, Instead, Lease, Taker, Transitions, new_token
from worker.stages.context import StageResult

PLAN = ["prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish"]


@pytest.fixture
def deaf(valkey: str) -> Iterator[Wire]:
    # Only the taking of a lease names stage, attempt and token so.
    found = Wire(valkey, lose=[f'"stage": "{stage}", "attempt": 1, "token"'.encode() for stage in PLAN])
    yield found
    found.close()


@pytest.mark.fault("the answer to the taking of the lease is lost")
def test_a_lease_whose_answer_was_lost_is_used(deaf: Wire, service: Installation) -> None:
    service.start_worker(redis_url=deaf.url)
    job = service.submit(labels=dict.fromkeys(PLAN, "noisy:1"))
    done = service.wait(job)
    service.assert_settled(done)
    assert {stage: outcomes(done, stage) for stage in PLAN} == {stage: [AttemptOutcome.SUCCEEDED] for stage in PLAN}
    assert len(deaf.lost) == len(PLAN)


def test_a_lease_is_taken_once_by_one_token(service: Installation) -> None:
    job = service.submit()
    hand = Transitions(service.redis, service.keys, 30)

    def take(token: str) -> Begun | Ignored | Instead:
        return hand.begin(job.id, StageName.PREPARE, 1, taker=Taker("w", "h", pin=True), limits={}, token=token)

    token = new_token(1)
    first = take(token)
    assert isinstance(first, Begun)
    assert first.previous_host == ""
    assert take(token) == first
    assert isinstance(take(new_token(1)), Ignored)
    assert len(service.client.get(job.id).stage(StageName.PREPARE).attempts) == 1


def test_going_back_for_lost_files_may_be_said_again(service: Installation) -> None:
    job = service.submit()
    hand = Transitions(service.redis, service.keys, 30)

    def take(stage: StageName) -> Lease:
        begun = hand.begin(job.id, stage, 1, taker=Taker("w", "h", pin=True), limits={})
        assert isinstance(begun, Begun)
        return begun.lease

    assert hand.complete(take(StageName.PREPARE), StageResult(), "done") is not None
    lease = take(StageName.MERGE)
    first = hand.rewind(lease, [StageName.PREPARE], "gone")
    assert first is not None
    assert first.message is not None
    assert (first.message.stage, first.message.attempt) == (StageName.PREPARE, 2)
    assert hand.rewind(lease, [StageName.PREPARE], "gone") == first
    assert service.messages(job.id).count("gone") == 1


def test_going_back_in_a_job_that_is_being_cancelled_may_be_said_again(service: Installation) -> None:
    job = service.submit()
    hand = Transitions(service.redis, service.keys, 30)
    begun = hand.begin(job.id, StageName.PREPARE, 1, taker=Taker("w", "h", pin=True), limits={})
    assert isinstance(begun, Begun)
    service.client.cancel(job.id)
    first = hand.rewind(begun.lease, [], "gone")
    assert first is not None
    assert first.message is None
    assert hand.rewind(begun.lease, [], "gone") == first
    assert service.client.get(job.id).state is JobState.CANCELLED


def test_a_cancel_whose_answer_was_lost_may_be_sent_again(service: Installation) -> None:
    job = service.submit()
    cancel = Script(service.redis, service.prefix, "api_client.ledger.lua", "cancel")
    assert cancel(id=job.id, nonce="n") == ["cancelled"]
    assert cancel(id=job.id, nonce="n") == ["cancelled"]
    assert cancel(id=job.id, nonce="another") == ["finished", "cancelled"]
    assert service.messages(job.id).count("Job cancelled") == 1


def test_a_replay_whose_answer_was_lost_may_be_sent_again_even_when_the_job_has_ended_since(
    service: Installation,
) -> None:
    job = service.submit()
    service.client.cancel(job.id)
    replay = Script(service.redis, service.prefix, "api_client.ledger.lua", "replay")
    first = replay(id=job.id, from_stage="", nonce="n")
    assert first[0] == "queued"
    service.client.cancel(job.id)
    assert replay(id=job.id, from_stage="", nonce="n") == first
    assert service.client.get(job.id).state is JobState.CANCELLED
    assert sum(text.startswith("Job replayed") for text in service.messages(job.id)) == 1

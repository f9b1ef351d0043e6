"""Reading stored jobs: folded attempts, other versions' requests, ids."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from api_client import AttemptOutcome, PackagingRequest, StageName
from api_client.contract.job_ids import new_job_id
from api_client.ledger.keys import split_member
from api_client.ledger.messages import StageMessage
from api_client.ledger.records import fold_attempts, read_event, read_request
from api_client.ledger.store import request_digest


def test_attempts_are_folded_from_starts_and_ends() -> None:
    error = json.dumps({"code": "upload_failed", "message": "m", "remedy": "r", "fields": {}})
    entries = [
        {"stage": "merge", "number": 1, "worker": "a", "started_at": 1_700_000_000_000},
        {"stage": "merge", "number": 1, "outcome": "retried", "finished_at": 1_700_000_001_500, "error": error},
        {"stage": "convert", "number": 1, "worker": "a", "started_at": 1_700_000_002_000},
        {"stage": "merge", "number": 2, "worker": "b", "started_at": 1_700_000_003_000},
        {"stage": "merge", "number": 3, "outcome": "succeeded", "finished_at": 1_700_000_004_000},
    ]
    folded = fold_attempts([json.dumps(entry) for entry in entries])
    first, second = folded[StageName.MERGE]
    assert (first.number, first.worker, first.outcome) == (1, "a", AttemptOutcome.RETRIED)
    assert first.finished_at == datetime.fromtimestamp(1_700_000_001.5, UTC)
    assert first.error is not None
    assert first.error["code"] == "upload_failed"
    assert (second.number, second.outcome, second.finished_at) == (2, AttemptOutcome.RUNNING, None)
    assert len(folded[StageName.CONVERT]) == 1


def test_a_request_of_another_version_can_still_be_looked_at() -> None:
    request = read_request('{"base_model": "/b", "compression": "zip", "labels": {"run": "1"}}')
    assert (request.base_model, request.labels, request.priority) == ("/b", {"run": "1"}, 5)


def test_events_keep_what_they_do_not_know_of_out() -> None:
    event = read_event("1-0", '{"time": 1700000000000, "job_id": "J", "kind": "Job", "message": "m", "colour": "red"}')
    assert (event.id, event.time.year, event.stage, event.fields) == ("1-0", 2023, None, {})


def test_ids_sort_by_time_and_read_well() -> None:
    earlier, later = new_job_id(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), new_job_id(datetime(2026, 1, 2, 3, 4, 6))
    assert earlier.startswith("20260102-030405-")
    assert earlier < later
    assert len({new_job_id() for _ in range(1000)}) == 1000


def test_the_digest_sees_everything_but_the_key() -> None:
    def request(**values: Any) -> PackagingRequest:
        return PackagingRequest(base_model="/b", checkpoint="/c", output_dir="/o", **values)

    assert request_digest(request(idempotency_key="a")) == request_digest(request(idempotency_key="b"))
    assert request_digest(request(labels={"a": "1", "b": "2"})) == request_digest(request(labels={"b": "2", "a": "1"}))
    assert request_digest(request()) != request_digest(request(priority=6))
    assert request_digest(request()) != request_digest(request(overwrite=True))


def test_a_version_with_one_field_more_knows_the_requests_of_before() -> None:
    class Newer(PackagingRequest):  # type: ignore[misc]  # the plugin-less checker takes the model for a dataclass
        signer: str = "nobody"

    sent: dict[str, Any] = {"base_model": "/b", "checkpoint": "/c", "output_dir": "/o", "labels": {"run": "42"}}
    assert request_digest(Newer(**sent)) == request_digest(PackagingRequest(**sent))
    assert request_digest(Newer(**sent, signer="me")) != request_digest(PackagingRequest(**sent))


def test_a_name_that_is_no_utf8_can_be_read_and_sent_on() -> None:
    stored = {"time": 1, "job_id": "j", "kind": "Job", "message": "a\udcffb 中", "fields": {"\udcff": ["😀\udcff"]}}
    event = read_event("1-0", json.dumps(stored))
    assert event.message == "a?b 中"
    assert json.loads(event.model_dump_json())["fields"] == {"?": ["😀?"]}


def test_an_event_of_a_newer_version_is_shown_as_the_job_s() -> None:
    event = read_event("1-0", '{"time": 1, "job_id": "J", "kind": "Sign", "stage": "sign", "message": "m"}')
    assert (event.kind, event.stage, event.message) == ("Job", None, "m")


def test_a_stage_of_a_newer_version_is_passed_on_as_it_is() -> None:
    message = StageMessage.from_answer(["J", "sign", "2", "packaging.heavy", "5", "2"])
    assert message.task_id == "J:sign:2"
    assert message.body == {"schema_version": 2, "job_id": "J", "stage": "sign", "attempt": 2}
    assert json.loads(json.dumps(message.body)) == message.body
    assert split_member("J|sign")[1].value == "sign"
    assert split_member("J|merge")[1] is StageName.MERGE

"""Texts from files, libraries and producers are cut before they are stored."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest

from api_client import ErrorCode, PackagingError
from api_client.contract.byte_bounds import FIELDS_BYTES, MESSAGE_BYTES, cut, cut_fields
from api_client.contract.errors import Failure
from api_client.contract.events import Event, EventKind
from worker.service.state.transitions import event_text


@pytest.mark.parametrize("letter", ["B", "é", "量", "🦙", "\udcff"])
def test_a_long_text_is_cut_at_a_whole_letter_and_says_so(letter: str) -> None:
    short, long = letter * 10, letter * 100_000
    assert cut(short, 100) == short
    found = cut(long, 1000)
    size = len(found.encode("utf-8"))
    assert 900 < size <= 1000
    assert found.endswith("bytes or more cut]")
    assert set(found.partition(" [")[0]) <= {letter, "?"}


def test_short_fields_stay_as_they_are_and_the_same() -> None:
    fields = {"path": "/a", "numbers": [1, 2.5, None, True], "deep": {"a": {"b": []}}}
    assert cut_fields(fields, 1000) is fields


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "B" * 20_000_000},
        {"names": ["n" * 5000] * 10_000},
        {"numbers": list(range(100_000))},
        {"k" * 1_000_000: 1},
        {f"key {number}": number for number in range(100_000)},
        {"deep": json.loads("[" * 500 + "]" * 500), "long": "x" * 100_000},
        {"odd": object(), "long": "x" * 100_000},
    ],
)
def test_long_fields_are_cut_and_stay_json(fields: dict[str, object]) -> None:
    size = len(json.dumps(cut_fields(fields, 10_000)))
    assert 0 < size < 20_000


def test_an_error_is_short_whatever_it_was_made_of() -> None:
    error = PackagingError(
        ErrorCode.BASE_MODEL_INVALID, "B" * 20_000_000, remedy="R" * 10**6, fields={"n": "x" * 10**7}
    )
    assert len(json.dumps(error.to_dict())) < 2 * MESSAGE_BYTES + FIELDS_BYTES + 200
    assert len(str(error)) < MESSAGE_BYTES + 50
    again = Failure.from_record({"code": "some_new_code", "message": "m" * 10**6, "fields": {"a": ["b" * 10**6]}})
    assert len(json.dumps(again.to_record())) < 2 * MESSAGE_BYTES + FIELDS_BYTES


def test_a_line_of_the_log_is_short() -> None:
    event = Event(
        time=datetime.now(UTC),
        job_id="J",
        level="info",
        kind=EventKind.JOB,
        message="m" * 10**6,
        fields={"a": "b" * 10**6},
    )
    assert len(event_text(event)) < MESSAGE_BYTES + FIELDS_BYTES + 500


def test_cut_fields_never_fail_and_never_grow() -> None:
    draw = random.Random(7)

    def value(depth: int) -> object:
        kind = draw.randrange(6 if depth < 6 else 4)
        if kind == 4:
            return [value(depth + 1) for _ in range(draw.randrange(8))]
        if kind == 5:
            return {str(draw.random()): value(depth + 1) for _ in range(draw.randrange(8))}
        return [None, draw.random(), "ü" * draw.randrange(20_000), draw.random() < 0.5][kind]

    for _ in range(300):
        fields = {"a": value(0), "b": value(0)}
        bound = draw.randrange(500, 20_000)
        size = len(json.dumps(cut_fields(fields, bound), ensure_ascii=False).encode())
        assert size <= max(2 * bound + 4096, 0)

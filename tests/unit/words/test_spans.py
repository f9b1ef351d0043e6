"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api_client.words.spans import read_since

NOW = datetime(2025, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("30s", timedelta(seconds=30)),
        (" 1.5 H ", timedelta(hours=1.5)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_span_reaches_back_from_now(text: str, back: timedelta) -> None:
    assert read_since(text, NOW) == NOW - back


def test_a_date_has_a_zone_that_of_this_machine_where_none_is_given() -> None:
    assert read_since("2025-11-23T08:00:00+02:00") == datetime(2025, 11, 23, 6, tzinfo=UTC)
    assert read_since("2025-11-23") == datetime(2025, 11, 23).astimezone()


@pytest.mark.parametrize("text", ["", "yesterday", "24", "h", "999999999w", "-1h", "1h1h"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_since(text)

"""Numbers, times and foreign text as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api_client.words import formatting as f

NOW = datetime(2025, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (999_949, "999.9 KB"),
        (999_960, "1.0 MB"),
        (31_200_000_000, "31.2 GB"),
        (5e18, "5000.0 PB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert f.format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (187, "3:07"),
        (3599.7, "1:00:00"),
        (7509, "2:05:09"),
        (48 * 3600, "2 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert f.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (1.2e9, 2e9, "bytes", "1.2 of 2.0 GB"),
        (5e5, 2e9, "bytes", "500.0 KB of 2.0 GB"),
        (0, 2e9, "bytes", "0 of 2.0 GB"),
        (120, 1272, "tensors", "120 of 1,272 tensors"),
        (25_600, 137_536, "weights", "25,600 of 137.5 K weights"),
        (200_000, 137_536_000, "weights", "200.0 K of 137.5 M weights"),
        (0.5e9, 1.24e9, "weights", "500.0 M of 1.2 B weights"),
        (1.1e9, 1.24e9, "weights", "1.1 of 1.2 B weights"),
        (1, 2, "files\x1b[2J", "1 of 2 files\\x1b[2J"),
    ],
)
def test_progress(done: float, total: float, unit: str, text: str) -> None:
    assert f.format_progress(done, total, unit) == text


def test_rates_ages_times_and_scores() -> None:
    assert f.format_rate(410e6, "bytes") == "410.0 MB/s"
    assert f.format_rate(12.3, "tensors") == "12 tensors/s"
    assert f.format_rate(11_135_443, "weights") == "11.1 M weights/s"
    assert f.format_rate(0.25, "chunks") == "0.2 chunks/s"
    assert f.format_rate(0.025, "files") == "1.5 files/min"
    ages = [
        (0, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3700, "1 h"),
        (47 * 3600, "47 h"),
        (9 * 86400, "9 d"),
        (-5, "0 s"),
    ]
    for seconds, text in ages:
        assert f.format_age(NOW - timedelta(seconds=seconds), NOW) == text
    assert len(f.format_time(NOW, NOW)) == len("14:03:22")
    assert f.format_time(NOW, NOW + timedelta(days=2)).startswith("2025-11-2")
    assert (f.format_score(None), f.format_score(1.23456), f.format_score(0)) == ("-", "1.235", "0")
    assert (f.format_switch(True), f.format_switch(False)) == ("on", "off")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain 模型 é", "plain 模型 é"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\x07b\x9b2J", "a\\x07b\\x9b2J"),
        ("safe\u202egnp.exe", "safe\\x202egnp.exe"),
        ("a\r\nb\rc", "a\nb\\x0dc"),
        ("\udcff", "\\xdcff"),
    ],
)
def test_foreign_text_cannot_steer_a_terminal(text: str, cleaned: str) -> None:
    assert f.clean(text) == cleaned
    assert f.one_line(text) == cleaned.replace("\n", " ")

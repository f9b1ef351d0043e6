"""When a lease counts as run out: by one's own monotonic clock, whatever wall clocks and outages do."""

from __future__ import annotations

import pytest

from worker.service.reaper import StandStill, run_out


def test_a_lease_that_moves_is_never_still() -> None:
    still = StandStill(longest_gap_s=2)
    for second in range(20):
        assert still.look(second, {"a|merge": str(1000 + second)}) == {"a|merge": 0}


def test_a_lease_that_stays_grows_old() -> None:
    still = StandStill(longest_gap_s=2)
    ages = [still.look(second, {"a|merge": "1000", "b|merge": str(second)}) for second in range(4)]
    assert [age["a|merge"] for age in ages] == [0, 1, 2, 3]
    assert [age["b|merge"] for age in ages] == [0, 0, 0, 0]


def test_wall_clocks_play_no_part() -> None:
    still = StandStill(longest_gap_s=2)
    still.look(0, {"past|merge": "0", "future|merge": "99999999999999"})
    assert still.look(1, {"past|merge": "0", "future|merge": "99999999999999"}) == {
        "past|merge": 1,
        "future|merge": 1,
    }
    # A jump back of the server's clock makes the next end earlier: still a renewal.
    assert still.look(2, {"past|merge": "0", "future|merge": "5"})["future|merge"] == 0


def test_after_a_gap_the_watching_starts_over() -> None:
    still = StandStill(longest_gap_s=2)
    still.look(0, {"a|merge": "1000"})
    assert still.look(1.9, {"a|merge": "1000"}) == {"a|merge": 1.9}
    assert still.look(60, {"a|merge": "1000"}) == {"a|merge": 0}
    assert still.look(61, {"a|merge": "1000"}) == {"a|merge": 1}


def test_a_stage_that_ended_is_forgotten() -> None:
    still = StandStill(longest_gap_s=2)
    still.look(0, {"a|merge": "1000"})
    assert still.look(1, {}) == {}
    assert still.look(2, {"a|merge": "1000"}) == {"a|merge": 0}


@pytest.mark.parametrize(
    ("still_s", "overdue_s", "gone"),
    [(29, 20, False), (30, 0, True), (30, -3600, True), (15, 30, True), (14, 3600, False), (15, 29, False)],
)
def test_how_long_is_long_enough(still_s: float, overdue_s: float, gone: bool) -> None:
    assert run_out(still_s, overdue_s, lease_s=30) is gone

"""Figures of the overview: what is counted into which hour, quantiles that were seen, hosts from their workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api_client.console.pages.figures import DAY, HEIGHT, HOUR, Quantiles, failures, hosts, queue_wait, throughput
from api_client.contract.fleet import WorkerInfo
from api_client.contract.job import JobState
from api_client.ledger.summaries import JobSummary

NOW = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)


def ended(age: timedelta, state: JobState = JobState.SUCCEEDED, code: str = "", waited_s: float = 2.0) -> JobSummary:
    ended_ms = int((NOW - age).timestamp() * 1000)
    started_ms = ended_ms - 10_000
    return JobSummary(
        id="x", state=state, created_ms=started_ms - int(waited_s * 1000), started_ms=started_ms, ended_ms=ended_ms,
        code=code, labels={}, searched="",
    )  # fmt: skip


def test_a_job_counts_in_the_hour_in_which_it_ended_and_no_other() -> None:
    jobs = [
        ended(timedelta(minutes=1)),
        ended(timedelta(minutes=29), JobState.FAILED),
        ended(timedelta(minutes=31)),
        ended(timedelta(hours=23)),
        ended(timedelta(hours=24)),
    ]
    drawn = throughput(jobs, HOUR, 24, NOW)
    assert [slot.total for slot in drawn.slots] == [1, *[0] * 21, 1, 2]
    assert drawn.slots[-1].start == datetime(2026, 3, 4, 12, tzinfo=UTC)
    assert drawn.slots[-1].counts == {JobState.SUCCEEDED: 1, JobState.FAILED: 1}
    assert drawn.most == 2
    assert all(0 <= bar.y <= bar.y + bar.height <= HEIGHT for bar in drawn.bars)
    assert throughput([], HOUR, 24, NOW).bars == []


def test_failures_of_the_day_are_among_those_of_the_week() -> None:
    jobs = [
        *[ended(timedelta(hours=age), JobState.FAILED, "upload_failed") for age in (1, 23, 25, 100)],
        ended(timedelta(hours=2), JobState.FAILED, "imatrix_mismatch"),
        ended(timedelta(days=8), JobState.FAILED, "output_exists"),
    ]
    assert failures(jobs, NOW) == [("upload_failed", 2, 4), ("imatrix_mismatch", 1, 1)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], (1, 3.0, 3.0, 3.0)), ([4.0, 1.0], (2, 1.0, 4.0, 4.0)), ([*range(1, 101)], (100, 50, 90, 100))],
)
def test_quantiles_are_values_that_were_seen(values: list[float], expected: tuple[float, ...]) -> None:
    found = Quantiles.of(values)
    assert found is not None
    assert (found.count, found.median, found.upper, found.most) == expected


def test_waiting_is_that_of_jobs_that_began_in_the_span() -> None:
    found = queue_wait([ended(timedelta(hours=1), waited_s=7), ended(timedelta(days=3), waited_s=900)], DAY, NOW)
    assert found is not None
    assert (found.count, found.most) == (1, 7.0)
    assert queue_wait([], DAY, NOW) is None


def test_a_host_is_what_its_workers_are_together() -> None:
    def worker(name: str, host: str, running: int, load: float | None, age_s: int) -> WorkerInfo:
        return WorkerInfo(
            name=name, host=host, pid=1, version="1", device="cpu", slots=2, queues=(), draining=False,
            running=tuple(f"job:{n}:1" for n in range(running)), torch_loaded=False, started_at=NOW,
            last_heartbeat_at=NOW - timedelta(seconds=age_s), load=load,
        )  # fmt: skip

    lines = hosts([worker("a", "north", 1, 0.5, 1), worker("b", "north", 2, 0.9, 9), worker("c", "south", 0, None, 1)])
    assert [(line.name, line.workers, line.used, line.slots, line.load) for line in lines] == [
        ("north", 2, 3, 4, 0.5), ("south", 1, 0, 2, None),
    ]  # fmt: skip

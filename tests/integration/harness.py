"""A real Valkey and real worker processes for tests, each installation under a key prefix of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from api_client import AttemptOutcome, Job, PackagingClient, PackagingRequest, StageName
from api_client.ledger.connecting import connect
from api_client.ledger.keys import Keys
from tests.waiting import BOUND_S, eventually

__all__ = [
    "BOUND_S",
    "FAST",
    "REAL_STAGES",
    "ROOT",
    "SHORT_LEASE",
    "Installation",
    "Worker",
    "eventually",
    "is_alive",
    "outcomes",
]

ROOT = Path(__file__).parents[2]

REAL_STAGES: dict[str, Any] = {
    "stage_registry": "worker.stages.registry:STAGES",
    "preload": "worker.service.preload",
    "lease_s": 30,
    "heartbeat_s": 1,
}
"""Settings of a worker that does the work itself and not small stages, with leases to match."""

_MARK = "INSTALLATION_OF_TESTS"

FAST: dict[str, Any] = {
    "lease_s": 5.0,
    "heartbeat_s": 0.3,
    "reap_s": 0.4,
    "requeue_after_s": 1.0,
    "retry_base_s": 0.05,
    "retry_max_s": 0.2,
    "drain_s": 5.0,
    "cancel_grace_s": 0.5,
    "outage_s": 20.0,
    "stage_registry": "tests.integration.small_stages:STAGES",
    "preload": "tests.integration.preload",
    "warm_up": False,
    "log_format": "json",
}


SHORT_LEASE: dict[str, Any] = {"lease_s": 1.5}
"""For tests in which a lease runs out. Others have no reason to risk that a busy machine lets one run out."""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def outcomes(job: Job, stage: str) -> list[AttemptOutcome]:
    """How the attempts of one stage ended."""
    return [attempt.outcome for attempt in job.stage(StageName(stage)).attempts]


@dataclass
class Worker:
    """One worker process."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(BOUND_S)

    def stop(self, bound_s: float = BOUND_S) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(bound_s)

    @property
    def lines(self) -> str:
        """What it has logged, whole lines only."""
        text = self.log.read_text(errors="replace")
        return text[: text.rfind("\n") + 1]


@dataclass
class Installation:
    """One key prefix, its client and its workers."""

    url: str
    directory: Path
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")
    workers: list[Worker] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """Of its workers, beyond ``FAST``."""

    def __post_init__(self) -> None:
        self.client = PackagingClient(self.url, key_prefix=self.prefix)
        self.keys = Keys(self.prefix)
        self.redis: Any = connect(self.url, 5)

    def environment(self, **settings: Any) -> dict[str, str]:
        own = {"redis_url": self.url, "key_prefix": self.prefix, "home": self.directory / "home"}
        kernels = os.environ.get(
            "TRAINPACK_KERNEL_CACHE_DIR", self.directory / "kernels"
        )  # set by pytest, not by a bench
        own |= {"kernel_cache_dir": kernels}
        values = FAST | self.settings | own | settings
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRAINPACK_")}
        told = {f"TRAINPACK_{name.upper()}": str(value) for name, value in values.items()}
        return inherited | told | {_MARK: self.mark}

    @property
    def mark(self) -> str:
        """What its processes are known by; the prefix alone, which may be everyone's, is another test's as well."""
        return f"{self.prefix} at {self.url}"

    def start_worker(
        self, *, wait: bool = True, source: Path = ROOT, module: str = "worker", **settings: Any
    ) -> Worker:
        """A worker process; ``source`` may be a copy of the packages, to run another version of them."""
        log = self.directory / f"worker-{len(self.workers)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=source,
                env=self.environment(**settings) | {"PYTHONPATH": os.pathsep.join((str(source), str(ROOT)))},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, log)
        self.workers.append(worker)
        if wait:
            self.wait_ready(worker)
        return worker

    def wait_ready(self, worker: Worker) -> None:
        def ready() -> bool:
            assert worker.process.poll() is None, worker.lines
            return "worker_ready" in worker.lines

        eventually(ready, f"worker ready; log so far: {worker.lines}")

    def request(self, name: str = "out", **values: Any) -> PackagingRequest:
        output = self.directory / name
        data = {"base_model": "/models/base", "checkpoint": "/runs/1/checkpoint-9", "output_dir": str(output)} | values
        return PackagingRequest(**data)

    def submit(self, name: str = "out", **values: Any) -> Job:
        return self.client.submit(self.request(name, **values))

    def wait(self, job: Job, timeout: float = BOUND_S) -> Job:
        return self.client.wait(job.id, timeout)

    def path(self, name: str, output: str = "out") -> Path:
        return self.directory / output / name

    def held(self, stage: str, attempt: int = 1, output: str = "out") -> None:
        """Wait until a held stage has begun."""
        eventually(self.path(f"{stage}.{attempt}.held", output).exists, f"{stage} attempt {attempt} held")

    def let_go(self, stage: str, output: str = "out") -> None:
        self.path("", output).mkdir(exist_ok=True)
        self.path(f"{stage}.go", output).touch()

    def runs(self, output: str = "out") -> list[str]:
        """Lines of ``runs.log``, process ids cut off."""
        log = self.path("runs.log", output)
        return [" ".join(line.split()[:3]) for line in log.read_text().splitlines()] if log.exists() else []

    def stage_pid(self, stage: str, attempt: int = 1, output: str = "out") -> int:
        for line in self.path("runs.log", output).read_text().splitlines():
            parts = line.split()
            if parts[:3] == ["start", stage, str(attempt)]:
                return int(parts[3])
        raise AssertionError(f"{stage} {attempt} never ran")

    def messages(self, job_id: str) -> list[str]:
        return [event.message for event in self.client.events(job_id)]

    def stage_processes(self) -> list[psutil.Process]:
        """Living processes that belong to this installation, workers apart."""
        own = {worker.pid for worker in self.workers}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.pid not in own and process.environ().get(_MARK) == self.mark
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def keep_alive(self, count: int, until: Callable[[], bool], bound_s: float = 90, **settings: Any) -> int:
        """Keep ``count`` workers running until something is so; how many were started again."""
        restarts = -count
        deadline = time.monotonic() + bound_s
        while not until():
            assert time.monotonic() < deadline, f"not in {bound_s:g} s"
            for _ in range(count - sum(worker.process.poll() is None for worker in self.workers)):
                self.start_worker(wait=False, **settings)
                restarts += 1
            time.sleep(0.05)
        return restarts

    def assert_settled(self, job: Job, output: str = "out") -> None:
        """Nothing is left of a succeeded job but its outputs and its record."""
        assert job.state == "succeeded", job.error
        for artifact in job.outputs:
            data = Path(artifact.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.size_bytes, artifact.sha256)
        names = {artifact.name for artifact in job.outputs}
        directory = self.path("", output)
        eventually(lambda: not (directory / f".trainpack-{job.id}").exists(), "scratch removed")
        expected = names | {"runs.log", "events.jsonl"}

        def clean() -> bool:
            return {p.name for p in directory.iterdir() if not p.name.endswith((".go", ".held"))} <= expected

        eventually(clean, f"no file left over beside {sorted(expected)}")
        for name in ("sent", "wake", "leases"):
            members = self.redis.zrange(self.keys.named(name), 0, -1)
            assert [m for m in members if m.startswith(job.id)] == []

    def end_workers(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.signal(signal.SIGCONT)
                worker.signal(signal.SIGKILL)
                worker.process.wait(BOUND_S)

    def close(self) -> None:
        self.end_workers()
        try:
            eventually(lambda: not self.stage_processes(), "no process left over")
        finally:
            for process in self.stage_processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.client.close()
            self.redis.close()

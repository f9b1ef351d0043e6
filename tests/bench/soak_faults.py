"""Faults of a soak, at random by a seed: of processes in one thread, of services in another, so that they overlap."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from redis.exceptions import RedisError

from api_client import PackagingError
from api_client.ledger.messages import QUEUE_HEAVY, QUEUE_IO, MessageSender, StageMessage, host_queue, queue_keys
from tests.integration.harness import Installation, Worker
from tests.integration.servers import Server
from tests.integration.storage.proxy import Fault, Proxy

LEASE_S = 8.0
_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


@dataclass(frozen=True)
class Happened:
    """One fault.

    Attributes:
        kind: Its name in the report.
        began: When, in seconds since the epoch.
        ended: When what was taken was given back.
        pid: Of the worker that was killed, stopped or frozen.
    """

    kind: str
    began: float
    ended: float
    pid: int = 0


@dataclass
class SoakFaults:
    """What goes wrong, until told to stop."""

    service: Installation
    server: Server
    proxy: Proxy
    open_jobs: Callable[[], list[str]]
    hosts: tuple[str, ...]
    seed: str
    happened: list[Happened] = field(default_factory=list)
    messages_doubled: int = 0
    messages_lost: int = 0
    mistakes: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        of_processes = {
            self.kill_worker: 4,
            self.kill_stage: 6,
            self.kill_fork_server: 2,
            self.drain: 2,
            self.freeze: 1,
        }
        of_services = {self.kill_redis: 2, self.freeze_redis: 1, self.no_storage: 3, self.double: 5, self.lose: 2}
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{self.seed}-{name}"), faults, every_s), name=name)
            for name, faults, every_s in (("processes", of_processes, 8.0), ("services", of_services, 12.0))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No more of them; what was taken is back when this returns."""
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, draw: random.Random, faults: dict[Callable[[random.Random], int], int], every_s: float) -> None:
        while not self.stopping.wait(draw.expovariate(1 / every_s)):
            fault = draw.choices([*faults], [*faults.values()])[0]
            began = time.time()
            try:
                pid = fault(draw)
            except (PackagingError, RedisError, psutil.Error, OSError) as error:  # it met another fault
                self.mistakes.append(f"{fault.__name__}: {type(error).__name__}")
            else:
                if pid >= 0:
                    self.happened.append(Happened(fault.__name__, began, time.time(), pid))

    # ---- of processes; each answers the worker's process id, 0 of none, or -1 where there was nothing to be hit

    def kill_worker(self, draw: random.Random) -> int:
        """kill -9 of a worker."""
        worker = self._worker(draw)
        if worker is None:
            return -1
        worker.kill()
        return worker.pid

    def kill_stage(self, draw: random.Random) -> int:
        """kill -9 of a process that runs a stage."""
        stages = [
            stage for worker in self._alive() for server in fork_servers(worker.pid) for stage in server.children()
        ]
        if not stages:
            return -1
        draw.choice(stages).kill()
        return 0

    def kill_fork_server(self, draw: random.Random) -> int:
        """kill -9 of the process that stages are forked from."""
        worker = self._worker(draw)
        servers = fork_servers(worker.pid) if worker else []
        if not servers:
            return -1
        servers[0].kill()
        return 0

    def drain(self, draw: random.Random) -> int:
        """SIGTERM to a worker."""
        worker = self._worker(draw)
        if worker is None:
            return -1
        worker.signal(signal.SIGTERM)
        return worker.pid

    def freeze(self, draw: random.Random) -> int:
        """SIGSTOP of a worker, its stage going on, for longer than its lease or not; then SIGCONT."""
        worker = self._worker(draw)
        if worker is None:
            return -1
        worker.signal(signal.SIGSTOP)
        self.stopping.wait(draw.uniform(1, 2.5 * LEASE_S))
        worker.signal(signal.SIGCONT)
        return worker.pid

    def _alive(self) -> list[Worker]:
        return [worker for worker in [*self.service.workers] if worker.process.poll() is None]

    def _worker(self, draw: random.Random) -> Worker | None:
        alive = self._alive()
        return draw.choice(alive) if alive else None

    # ---- of services

    def kill_redis(self, draw: random.Random) -> int:
        """kill -9 of the Redis server, away for a while, then back on its append-only file."""
        self.server.end(signal.SIGKILL)
        self.stopping.wait(draw.uniform(0, 1.5 * LEASE_S))
        self.server.start()
        return 0

    def freeze_redis(self, draw: random.Random) -> int:
        """SIGSTOP of the Redis server, for longer than a lease or not; then SIGCONT."""
        assert self.server.process is not None
        self.server.process.send_signal(signal.SIGSTOP)
        self.stopping.wait(draw.uniform(1, 2 * LEASE_S))
        self.server.process.send_signal(signal.SIGCONT)
        return 0

    def no_storage(self, draw: random.Random) -> int:
        """The object storage breaks off, or answers 503, for a while."""
        kind, value = draw.choice((("drop", None), ("status", 503)))
        self.proxy.faults += [Fault(kind, method, "", value) for method in _METHODS]
        self.stopping.wait(draw.uniform(2, 25))
        self.proxy.faults.clear()
        return 0

    def double(self, draw: random.Random) -> int:
        """Messages again, late and early, for stages of jobs that are open."""
        sender, sent = MessageSender(self.service.url, self.service.keys, 5), 0
        try:
            for job_id in self.open_jobs():
                for stage in self.service.client.get(job_id).stages:
                    for attempt in range(max(1, stage.attempt - 1), stage.attempt + 2):
                        queue = draw.choice((QUEUE_IO, QUEUE_HEAVY, *map(host_queue, self.hosts)))
                        sent += sender.send(StageMessage(job_id, stage.name, attempt, queue, draw.randrange(10)))
        finally:
            self.messages_doubled += sent
            sender.close()
        return 0

    def lose(self, draw: random.Random) -> int:
        """Every message that waits in a queue is gone."""
        for queue in (QUEUE_IO, QUEUE_HEAVY, *map(host_queue, self.hosts)):
            for key in queue_keys(self.service.keys, queue):
                self.messages_lost += self.service.redis.llen(key)
                self.service.redis.delete(key)
        return 0


def fork_servers(pid: int) -> list[psutil.Process]:
    """Of a worker."""
    with contextlib.suppress(psutil.Error):
        return [p for p in psutil.Process(pid).children() if "multiprocessing.forkserver" in " ".join(p.cmdline())]
    return []

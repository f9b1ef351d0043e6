"""The whole stack: started, found or refused, and stopped without leaving a process behind.

One lock per home decides who starts. Whoever does not get it uses the stack that runs. The order: Valkey and SeaweedFS
together, workers as soon as Valkey answers, the state file last, so that whoever reads it can work at once.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from worker.local.embedded import guard, seaweedfs, valkey, workers
from worker.local.embedded.ports import LOOPBACK, choose_ports, is_free, says_port_taken
from worker.local.embedded.processes import Processes, ProcessId, StackProcess, start_ticks
from worker.local.embedded.state import StackInfo, StackSecrets, last_stack, read_stack, remove_stack, write_stack
from worker.local.embedded.workers import OWN_PROGRAM, WorkerProgram
from worker.storage.locks import FileLock
from worker.storage.paths import ensure_output_dir

_POLL_S = 0.02
_PORT_ATTEMPTS = 3
_SERVER_ORDER, _WORKER_ORDER = 0, 1
_LEFTOVER_GRACE_S = 10.0
CONSOLE = "console"
"""Name of the console among the stack's processes."""
_CONSOLE_PORT = 8321
_CONSOLE_GRACE_S = 10.0


class Stack:
    """Valkey, SeaweedFS and workers under one home. ``with Stack(home) as stack: ...`` starts and stops it.

    Where a stack already runs in that home it is used as it is (``owned`` is then false) and left running.

    Args:
        home: Directory for data, logs, secrets and the state file.
        workers: How many worker processes to start.
        objects: Whether to run object storage; without it workers use the one that the environment names, if any.
        timeout_s: Longest wait for each server.
        worker_timeout_s: Longest wait for the workers.
        program: What a worker is.
    """

    def __init__(
        self,
        home: Path,
        *,
        workers: int = 1,
        objects: bool = True,
        timeout_s: float = 60.0,
        worker_timeout_s: float = 120.0,
        program: WorkerProgram = OWN_PROGRAM,
    ) -> None:
        self.home = home.expanduser().absolute()
        self._worker_count = workers
        self._objects = objects
        self._timeout_s = timeout_s
        self._worker_timeout_s = worker_timeout_s
        self._program = program
        self._lock = FileLock(self.home / "stack.lock")
        self._processes: Processes | None = None
        self._seaweed_ports: dict[str, int] = {}
        self._info: StackInfo | None = None

    @property
    def info(self) -> StackInfo:
        """Where it listens; after :meth:`start`."""
        assert self._info is not None, "the stack is not started"
        return self._info

    @property
    def owned(self) -> bool:
        """Whether this object started it, and will stop it."""
        return self._processes is not None

    def environment(self) -> dict[str, str]:
        """Variables that point a client or worker to it; after :meth:`start`."""
        return self.info.environment()

    def ended(self) -> tuple[StackProcess, ...]:
        """Own services that have ended though nobody stopped them."""
        services = self._processes.services if self._processes is not None else ()
        return tuple(service for service in services if service.exit_status() is not None)

    def start(self) -> StackInfo:
        """Start the stack, or find the one that runs.

        Raises:
            PackagingError: ``service_start_failed`` with the last log lines (nothing is left running then),
                ``dependency_missing``, ``output_dir_not_writable``.
        """
        self._make_home()
        if not self._acquire():
            return self.info
        try:
            self._end_leftovers()
            self._processes = Processes(self._lock.descriptor, _private(self.home / "logs"))
            self._info = self._launch_on_free_ports(self._processes)
            write_stack(self._info)
        except BaseException:
            self.stop()
            raise
        return self._info

    def serve_console(self) -> str:
        """Run the console for this stack until it stops.

        Returns:
            Its address.

        Raises:
            PackagingError: ``service_start_failed``.
        """
        assert self._processes is not None, "only who started the stack adds to it"
        port = choose_ports({CONSOLE: _CONSOLE_PORT})[CONSOLE]
        console = self._processes.start(
            CONSOLE,
            [
                sys.executable,
                "-P",
                "-m",
                "api_client.cli",
                "console",
                "--json",
                "--host",
                LOOPBACK,
                "--port",
                str(port),
            ],
            directory=self.home,
            environment=workers.worker_environment(self.environment()),
            order=_WORKER_ORDER,
            grace_s=_CONSOLE_GRACE_S,
        )
        self._await(console, lambda: not is_free(port), self._timeout_s)
        return f"http://{LOOPBACK}:{port}"

    def stop(self) -> None:
        """Stop what :meth:`start` started: workers first, which hand their stages back; then the servers."""
        processes, self._processes, self._info = self._processes, None, None
        try:
            if processes is not None:
                remove_stack(self.home)
                processes.end_all()
                seaweedfs.remove_sockets(self._seaweed_ports)
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_home(self) -> None:
        try:
            ensure_output_dir(self.home, Roots.anywhere())
        except PackagingError as error:
            raise PackagingError(
                error.code,
                f"home of the embedded stack: {error.message}",
                remedy="Correct it, or set TRAINPACK_HOME to a directory that can be written.",
                fields=error.fields,
            ) from error

    def _acquire(self) -> bool:
        """Get the right to start; false where a running stack was found instead."""
        patience_s = self._timeout_s + self._worker_timeout_s
        deadline = time.monotonic() + patience_s
        while not self._lock.try_acquire():
            if self._join():
                return False
            if time.monotonic() > deadline:
                raise PackagingError(
                    ErrorCode.SERVICE_START_FAILED,
                    f"another process starts or stops the stack in {self.home}, for {patience_s:.0f} s by now",
                    remedy="Wait for it, or end it, then try again.",
                    fields={"home": str(self.home)},
                )
            time.sleep(_POLL_S)
        return True

    def _join(self) -> bool:
        """Use the stack that runs, if one does."""
        self._info = read_stack(self.home)
        return self._info is not None

    def _end_leftovers(self) -> None:
        """End processes of an earlier stack whose owner and guard were both killed."""
        left = last_stack(self.home)
        if left is not None:
            alive = [(name, process.pid) for name, process in left.services.items() if process.alive()]
            wards = [guard.open_ward(_order(name), pid, _LEFTOVER_GRACE_S) for name, pid in alive]
            guard.end(ward for ward in wards if ward is not None)
        remove_stack(self.home)

    def _launch_on_free_ports(self, processes: Processes) -> StackInfo:
        secrets = StackSecrets.of_home(self.home)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            ports = choose_ports(valkey.PREFERRED_PORTS | (seaweedfs.PREFERRED_PORTS if self._objects else {}))
            try:
                return self._launch(processes, ports, secrets)
            except PackagingError as error:
                for service in processes.services:
                    processes.end(service.name)
                # lost between choosing it and using it, or held for a moment by another stack that chose
                lost = says_port_taken(error.message) or not all(is_free(port) for port in ports.values())
                if not lost or attempt == _PORT_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _launch(self, processes: Processes, ports: Mapping[str, int], secrets: StackSecrets) -> StackInfo:
        info = StackInfo(
            home=self.home,
            redis_url=valkey.redis_url(ports["valkey"], secrets.redis_password),
            endpoint_url=f"http://{LOOPBACK}:{ports['s3']}" if self._objects else "",
            access_key=secrets.s3_access_key,
            secret_key=secrets.s3_secret_key,
            bucket=seaweedfs.BUCKET if self._objects else "",
            owner=ProcessId(os.getpid(), start_ticks(os.getpid()) or 0),
            services={},
        )
        self._seaweed_ports = {name: port for name, port in ports.items() if name != "valkey"}
        queue = self._start_valkey(processes, ports["valkey"], secrets)
        objects = self._start_seaweedfs(processes, info) if self._objects else None
        self._await(queue, lambda: valkey.is_ready(info.redis_url), self._timeout_s)
        started = [self._start_worker(processes, number, info) for number in range(1, self._worker_count + 1)]
        if objects is not None:
            self._await(objects, seaweedfs.ready_check(info.storage()), self._timeout_s)
        for worker in started:
            self._await(worker, functools.partial(self._serves, worker, info.redis_url), self._worker_timeout_s)
        return replace(info, services={service.name: service.identity for service in processes.services})

    def _start_valkey(self, processes: Processes, port: int, secrets: StackSecrets) -> StackProcess:
        directory = _private(self.home / "valkey")
        configuration = valkey.write_configuration(directory, port, secrets.redis_password)
        return processes.start(
            "valkey",
            [str(valkey.find_program()), str(configuration)],
            directory=directory,
            environment={"PATH": os.defpath},
            order=_SERVER_ORDER,
            grace_s=valkey.GRACE_S,
        )

    def _start_seaweedfs(self, processes: Processes, info: StackInfo) -> StackProcess:
        directory = _private(self.home / "seaweedfs")
        program = seaweedfs.find_program()
        return processes.start(
            "seaweedfs",
            seaweedfs.command(program, directory, self._seaweed_ports, info.access_key, info.secret_key),
            directory=directory,
            environment=seaweedfs.environment(directory),
            order=_SERVER_ORDER,
            grace_s=seaweedfs.GRACE_S,
        )

    def _start_worker(self, processes: Processes, number: int, info: StackInfo) -> StackProcess:
        return processes.start(
            f"worker-{number}",
            self._program.command,
            directory=self.home,
            environment=workers.worker_environment(info.environment()),
            order=_WORKER_ORDER,
            grace_s=self._program.grace_s,
        )

    def _serves(self, worker: StackProcess, redis_url: str) -> bool:
        return worker.identity.pid in self._program.serving_pids(redis_url)

    def _await(self, service: StackProcess, ready: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if service.exit_status() is not None:
                raise service.start_failed("ended while starting")
            if time.monotonic() > deadline:
                raise service.start_failed(f"not ready after {timeout_s:.0f} s")
            time.sleep(_POLL_S)


def _order(name: str) -> int:
    return _WORKER_ORDER if name.startswith("worker") else _SERVER_ORDER


def _private(directory: Path) -> Path:
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory

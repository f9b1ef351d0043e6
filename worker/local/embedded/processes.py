"""Starting service processes under a guard, knowing whether they live, and what they wrote last."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from api_client.contract.errors import ErrorCode, PackagingError
from worker.local.embedded import guard

_TAIL_BYTES = 16 * 1024
_REAP_S = 10.0


class ProcessId(NamedTuple):
    """A process, told apart from a later one with the same number."""

    pid: int
    start_ticks: int
    """Field 22 of ``/proc/PID/stat``: clock ticks after boot."""

    def alive(self) -> bool:
        """Whether this very process is there and has not ended."""
        return start_ticks(self.pid) == self.start_ticks


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; ``None`` where there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return None if state in (b"Z", b"X") else int(fields[18])


@dataclass(frozen=True)
class StackProcess:
    """A process of the stack.

    Attributes:
        name: For people: ``valkey``, ``seaweedfs``, ``worker-1``.
        process: Its handle.
        identity: Its id and start.
        log: File with its output.
    """

    name: str
    process: subprocess.Popen[bytes]
    identity: ProcessId
    log: Path

    def exit_status(self) -> int | None:
        """Its exit status (negative: the signal), ``None`` while it runs."""
        return self.process.poll()

    def start_failed(self, reason: str) -> PackagingError:
        """The error for a service that does not serve, with the last lines of its log."""
        status = self.exit_status()
        ended = "" if status is None else f" (ended with status {status})"
        lines = log_tail(self.log)
        said = "".join(f"\n  {line}" for line in lines) or " nothing"
        return PackagingError(
            ErrorCode.SERVICE_START_FAILED,
            f"{self.name}: {reason}{ended}; last lines of {self.log}:{said}",
            fields={"service": self.name, "exit_status": status, "log": str(self.log), "last_lines": lines},
        )


def log_tail(log: Path, lines: int = 12) -> list[str]:
    """Last lines of a log file; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return list(deque((line.decode(errors="replace").rstrip() for line in file), maxlen=lines))
    except FileNotFoundError:
        return []


class Processes:
    """The services of one stack, with the guard that ends them should their owner die.

    Args:
        lock_descriptor: An open file whose lock the guard shares.
        logs: Directory of the log files.
    """

    def __init__(self, lock_descriptor: int, logs: Path) -> None:
        self._logs = logs
        self._services: dict[str, StackProcess] = {}
        self._wards: list[guard.Ward] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock_descriptor,),
            start_new_session=True,
        )

    @property
    def services(self) -> tuple[StackProcess, ...]:
        """All services started and not yet ended, in the order of their start."""
        return tuple(self._services.values())

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        order: int,
        grace_s: float,
    ) -> StackProcess:
        """Start a service in a session of its own, so that Ctrl-C does not reach it, and tell the guard.

        Args:
            name: Also the name of its log, which is begun anew; the one before is kept as ``NAME.log.1``.
            command: Program and arguments.
            directory: Working directory.
            environment: Its whole environment.
            order: Services of a higher order end first.
            grace_s: How long it may take to end by itself.

        Raises:
            PackagingError: ``service_start_failed`` where the program cannot be run.
        """
        log = self._logs / f"{name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    env=dict(environment),
                    start_new_session=True,
                )
            except OSError as error:
                raise PackagingError(
                    ErrorCode.SERVICE_START_FAILED,
                    f"{name}: {command[0]} cannot be run: {error.strerror}",
                    fields={"service": name, "program": command[0]},
                ) from error
        service = StackProcess(name, process, ProcessId(process.pid, start_ticks(process.pid) or 0), log)
        self._services[name] = service
        self._watch(order, process.pid, grace_s)
        return service

    def end(self, name: str) -> None:
        """End one service."""
        service = self._services.pop(name)
        wards = [ward for ward in self._wards if ward.pid == service.process.pid]
        self._wards = [ward for ward in self._wards if ward not in wards]
        guard.end(wards)
        service.process.wait(_REAP_S)

    def end_all(self) -> None:
        """End every service, then the guard, which thereby gives up the lock.

        Interrupted by a second Ctrl-C, it leaves the rest to the guard.
        """
        try:
            guard.end(self._wards)
            for service in self._services.values():
                service.process.wait(_REAP_S)
        finally:
            assert self._guard.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
        self._wards, self._services = [], {}
        self._guard.wait(_REAP_S)

    def _watch(self, order: int, pid: int, grace_s: float) -> None:
        ward = guard.open_ward(order, pid, grace_s)
        if ward is None:
            return
        self._wards.append(ward)
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(f"{order} {pid} {grace_s}\n".encode())
            self._guard.stdin.flush()
        except BrokenPipeError as error:
            raise PackagingError(ErrorCode.SERVICE_START_FAILED, "the stack's guard process has ended") from error

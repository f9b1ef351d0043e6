"""A child process as the worker sees it, a stage's above all: start, listen, stop, kill, and what it wrote last."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from typing import Any

from worker.service.supervisor import child
from worker.service.supervisor.channel import Channel
from worker.service.supervisor.limits import describe_death, group_memory_bytes, oom_kills

_LAST_LINES = 40
_LINE_CHARACTERS = 500
_JOIN_S = 10.0


class StageProcess:
    """One child. Belongs to one thread, except :meth:`stop` and :meth:`kill`.

    Args:
        context: Of the fork server.
        start: What the child is given; must survive pickling.
        entry: What it runs, with its ends of the channel and of the output, and ``start``.
        name: Of the process, for people.
    """

    def __init__(
        self,
        context: ForkServerContext,
        start: Any,
        *,
        entry: Callable[[socket.socket, socket.socket, Any], None] = child.main,
        name: str = "stage",
    ) -> None:
        ours, theirs = socket.socketpair()
        self._output, output = socket.socketpair()
        self._partial_line = b""
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._oom_kills = oom_kills()
        self.channel = Channel(ours)
        self._process = context.Process(target=entry, args=(theirs, output, start), name=name)
        try:
            self._process.start()
        except BaseException:
            self.channel.close()
            self._output.close()
            raise
        finally:
            theirs.close()
            output.close()

    @property
    def pid(self) -> int:
        """Process id, which is also its group's."""
        return int(self._process.pid or 0)

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What it last wrote to standard output and error."""
        rest = self._partial_line.decode(errors="replace").strip()
        return (*self._lines, rest[:_LINE_CHARACTERS]) if rest else tuple(self._lines)

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the process and what it started."""
        return group_memory_bytes(self.pid)

    def poll(self, timeout_s: float) -> list[dict[str, Any]]:
        """Messages that arrived within the time; empty is no sign of an end, see :meth:`ended`."""
        sources: list[Any] = [self._process.sentinel]
        sources += [source for source in (self.channel, self._output) if source.fileno() >= 0]
        if self.channel.closed:
            sources.remove(self.channel)
        wait(sources, timeout_s)
        self._read_output()
        return self.channel.receive()

    def ended(self) -> bool:
        """Whether the process is gone."""
        return not self._process.is_alive()

    def _read_output(self) -> None:
        while self._output.fileno() >= 0:
            try:
                data = self._output.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._output.close()
                return
            *lines, self._partial_line = (self._partial_line + data).replace(b"\r", b"\n").split(b"\n")
            self._partial_line = self._partial_line[-_LINE_CHARACTERS:]
            self._lines.extend(line.decode(errors="replace")[:_LINE_CHARACTERS] for line in lines if line.strip())

    def stop(self) -> None:
        """Ask it to stop at its next safe point."""
        self.channel.send("stop")

    def kill(self) -> None:
        """End the whole process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.is_alive():  # It may not lead its group yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def death(self) -> str:
        """How it died; waits for the exit code."""
        self._process.join(_JOIN_S)
        return describe_death(self._process.exitcode, oom_kills() > self._oom_kills)

    def close(self) -> None:
        """End it if it still runs, and everything of its group, and free what it held here."""
        self.kill()
        self._process.join(_JOIN_S)
        self._read_output()
        self.channel.close()
        self._output.close()
        if not self._process.is_alive():
            self._process.close()

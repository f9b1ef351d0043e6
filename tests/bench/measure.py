"""Run a command and measure it from outside: wall seconds, processor seconds, peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one run cost. Peak memory is of the largest single process."""

    wall_s: float
    cpu_s: float
    peak_bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s, max(self.peak_bytes, other.peak_bytes))


def run(command: Sequence[str], *, said: Path | None = None, **environment: str) -> Cost:
    """Run to the end and account for it; ``said`` gets everything that it printed.

    Raises:
        RuntimeError: the command failed; its last lines are the message.
    """
    started = os.times().elapsed
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{output[-3000:]}")
    if said is not None:
        said.write_text(output)
    return Cost(os.times().elapsed - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def output(command: Sequence[str], **environment: str) -> str:
    """Run to the end; everything that it printed.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return done.stdout


def python(*arguments: str) -> list[str]:
    """Command line of this Python."""
    return [sys.executable, *arguments]

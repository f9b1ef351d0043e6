"""Bounds of a running stage, and how a dead process died."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psutil

_CGROUP_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


def group_memory_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants, bytes; 0 once it is gone."""
    total = 0
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def oom_kills() -> int:
    """How many processes the kernel has ended in this control group for want of memory; 0 where it does not say."""
    for path in _CGROUP_COUNTERS:
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text("ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def describe_death(exit_code: int | None, oom: bool) -> str:
    """How a process ended, in words.

    Args:
        exit_code: As ``multiprocessing`` gives it; negative for a signal.
        oom: Whether the kernel reported an out-of-memory kill meanwhile.
    """
    if exit_code is None:
        return "lost"
    if exit_code >= 0:
        return f"ended with exit code {exit_code} and no result"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-exit_code).name
        return f"killed by {name}" + (" (out of memory)" if oom and name == "SIGKILL" else "")
    return f"killed by signal {-exit_code}"

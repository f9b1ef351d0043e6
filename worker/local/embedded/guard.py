"""Ends the services of a stack whose owner is gone, however it went.

Runs as a process of its own, ``python -I -S guard.py``, in a session of its own. Its standard input is a pipe from the
owner: one line ``ORDER PID GRACE_S`` for each service started, and the end of the input when the owner has stopped or
died (kill -9 included). It keeps the stack's lock open until the last service is gone, so that nobody starts on data
that is still in use. The owner stops its services with the same functions. Standard library only: it starts in
milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

_KILLED_S = 5.0


class Ward(NamedTuple):
    """A process to end.

    Attributes:
        order: Processes of a higher order are ended first; those of one order together.
        pid: Its id, which is also its process group's.
        grace_s: How long it may take after SIGTERM.
        pidfd: A handle that never means another process, unlike the id.
    """

    order: int
    pid: int
    grace_s: float
    pidfd: int


def open_ward(order: int, pid: int, grace_s: float) -> Ward | None:
    """Take hold of a process; ``None`` where it has ended already."""
    try:
        return Ward(order, pid, grace_s, os.pidfd_open(pid))
    except ProcessLookupError:
        return None


def end(wards: Iterable[Ward]) -> None:
    """SIGTERM, a bounded wait, then SIGKILL to the whole group; by falling order. Closes the handles."""
    for _, group in groupby(sorted(wards, key=lambda ward: -ward.order), key=lambda ward: ward.order):
        _end_together(list(group))


def _end_together(wards: list[Ward]) -> None:
    for ward in wards:
        _signal(ward, signal.SIGTERM)
    deadlines = [(ward, time.monotonic() + ward.grace_s) for ward in wards]
    for ward, deadline in deadlines:
        ended = _wait(ward, deadline - time.monotonic())
        if not ended:
            _signal(ward, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what it may have left in its group
            os.killpg(ward.pid, signal.SIGKILL)
        if not ended:
            _wait(ward, _KILLED_S)
        os.close(ward.pidfd)


def _signal(ward: Ward, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(ward.pidfd, number)


def _wait(ward: Ward, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(ward.pidfd, select.POLLIN)
    return bool(poll.poll(max(0, int(timeout_s * 1000))))


def main() -> None:
    """Read wards until the owner is gone, then end them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wards = []
    for line in sys.stdin:
        order, pid, grace_s = line.split()
        ward = open_ward(int(order), int(pid), float(grace_s))
        if ward is not None:
            wards.append(ward)
    end(wards)


if __name__ == "__main__":
    main()

"""The fork server: a process that has the heavy modules loaded and forks one child per attempt.

It lives as long as the worker; killed, it is started again by the next attempt.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext

from worker.foreign import take_life_line, use_directory
from worker.service.supervisor.socket_directory import socket_directory


def fork_context(preload: str) -> ForkServerContext:
    """The context to start children in.

    Args:
        preload: Module that the fork server imports; empty for none.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.service.supervisor.shield", *filter(None, [preload])])
    # A child would run the program's main module again. A module named ``*.__main__`` is left alone.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("worker.__main__")
    return context


def start_forkserver() -> None:
    """Start the fork server now, so that the first stage need not wait for its imports.

    A Ctrl-C reaches it too; until it has loaded its shield the signal waits, so that it does not end with a traceback.
    """
    use_directory(str(socket_directory()))
    resource_tracker.ensure_running()  # The fork server starts it otherwise, which would let the signal through.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_forkserver() -> None:
    """In a child: let go of the fork server's life line, so that it ends with the worker and not with its children."""
    descriptor = take_life_line()
    if descriptor is not None:
        os.close(descriptor)

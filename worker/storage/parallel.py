"""Many small pieces of input and output work on a few threads, ended together when one fails or a stop is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from worker.stop import ShouldStop, StopRequested

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.2


def run_parallel(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int,
    abandoned: threading.Event,
    on_done: Callable[[R], None],
    should_stop: ShouldStop | None = None,
) -> None:
    """Do ``work`` for every item; results reach ``on_done`` on the calling thread, in the order of their completion.

    Args:
        work: Called on other threads; at most ``threads`` at once, and no item is drawn before a thread is free.
        items: What to work on.
        threads: How many threads.
        abandoned: Set here when the rest is given up, so that running work can end early.
        on_done: Given each result.
        should_stop: Asked at least five times a second.

    Raises:
        StopRequested: asked to stop. Other exceptions are those of ``work``; running work has ended by then.
    """
    pending: set[Future[R]] = set()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.add(pool.submit(work, item))
                while len(pending) >= threads:
                    pending = _collect(pending, on_done, should_stop)
            while pending:
                pending = _collect(pending, on_done, should_stop)
        except BaseException:
            abandoned.set()
            for future in pending:
                future.cancel()
            raise


def _collect(pending: set[Future[R]], on_done: Callable[[R], None], should_stop: ShouldStop | None) -> set[Future[R]]:
    done, rest = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
    for future in done:
        on_done(future.result())
    if should_stop is not None and should_stop():
        raise StopRequested
    return rest

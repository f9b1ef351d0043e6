"""A worker one of whose parts cannot start, as where the system gives no more threads; it says what it leaves."""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module

PARTS = (
    "worker.supervisor.heart:Heart",
    "worker.reaper:Reaper",
    "worker.questions:QuestionListener",
    "worker.metrics.server:MetricsServer",
    "worker.callbacks.courier:Courier",
)


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def main() -> int:
    from worker.__main__ import main as run

    module, _, name = os.environ["FAILING_PART"].partition(":")
    getattr(import_module(module), name).start = refuse
    try:
        return run()
    finally:
        print("threads left:", sorted(thread.name for thread in threading.enumerate()), flush=True)


if __name__ == "__main__":
    sys.exit(main())

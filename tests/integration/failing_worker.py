"""A worker one of whose parts cannot start, as where the system gives no more threads; it says what it leaves."""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module

PARTS = (
    "worker.service.supervisor.heart:Heart",
    "worker.service.reaper:Reaper",
    "worker.service.questions:QuestionListener",
    "worker.service.metrics.server:MetricsServer",
    "worker.service.callbacks.courier:Courier",
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

"""Celery's part of the worker: it takes messages and hands them to the supervisor, until it is told to stop."""

from __future__ import annotations

import os
import signal
import warnings
from typing import Any

import structlog
from celery import Celery, signals
from celery.platforms import SecurityWarning

from config.log_events import LogEvent
from config.settings import Settings
from worker.service.intake import Intake
from worker.service.supervisor.drain import Drain

_log = structlog.stdlib.get_logger(__name__)


def serve(app: Celery, settings: Settings, worker_name: str, drain: Drain, intake: Intake) -> bool:
    """Take messages until a signal, or the broker's end, drains the worker.

    Returns:
        Whether it ended because it was told to.
    """
    # It warns root of pickled messages while the worker is made; only JSON is accepted here.
    warnings.simplefilter("ignore", SecurityWarning)

    class DrainingWorker(app.Worker):  # type: ignore[misc]
        """One that the broker's consumer may end as well, with an error: it must not wait for its stages then."""

        def stop(self, *arguments: Any, **options: Any) -> None:
            if not drain.requested:
                drain.request()
            super().stop(*arguments, **options)

    worker = DrainingWorker(
        pool="threads",
        concurrency=settings.slots,
        hostname=f"trainpack@{worker_name}",
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )

    def handle_signal(number: int, _frame: Any) -> None:
        from celery.worker import state

        drain.request()
        state.should_stop = os.EX_OK
        os.write(2, f"worker: {signal.Signals(number).name}, draining\n".encode())

    def take_over_signals(sender: Any, **_: Any) -> None:
        intake.attach(sender)
        # Celery installs its own handlers when it starts; SIGTERM and Ctrl-C must drain the stages as well.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, handle_signal)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        _log.info(LogEvent.WORKER_READY, worker=worker_name)

    signals.worker_ready.connect(take_over_signals, weak=False)
    worker.start()
    return not worker.exitcode

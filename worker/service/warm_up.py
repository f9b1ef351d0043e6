"""Compiles the common kernels beside a starting worker, in a process of its own and in idle time.

The worker does not wait for it and loads nothing for it; stages find what it made in the cache on disk. A stage that
comes before it is done compiles what it needs itself. When the cache is full already, it ends within a second.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import structlog

from config.log_events import LogEvent
from config.settings import Settings

_log = structlog.stdlib.get_logger(__name__)


def start_warm_up(settings: Settings) -> subprocess.Popen[bytes] | None:
    """Start it, unless the settings say not to.

    Returns:
        The process, which ends by itself, at the latest with this one; None if there is none.
    """
    if not settings.warm_up:
        return None
    command = [sys.executable, "-m", "worker.kernels.precompile", "--warm-up", "--cache", str(settings.kernels_dir)]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        _log.warning(LogEvent.KERNELS_NOT_WARMED, error=str(error))
        return None
    threading.Thread(target=_wait, args=(process,), name="kernel-warm-up", daemon=True).start()
    return process


def _wait(process: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    status = process.wait()
    if status == 0:
        _log.info(LogEvent.KERNELS_WARMED, seconds=round(time.monotonic() - started, 1))
    elif status > 0:
        _log.warning(LogEvent.KERNELS_NOT_WARMED, error=f"exit status {status}")

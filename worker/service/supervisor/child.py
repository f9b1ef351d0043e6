"""The stage's process: runs one stage function and reports through its channel. It knows nothing of Redis or Celery.

It leads a session and process group of its own, so that the worker can end it with everything it started, and it dies
with its worker: when the fork server goes (parent-death signal) or the channel closes.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api_client.contract.byte_bounds import DETAIL_BYTES, FIELDS_BYTES, MESSAGE_BYTES, cut, cut_fields
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import PEAK_MEMORY_FACT
from api_client.disk import is_full, no_space
from config.roots import Roots
from worker.service.supervisor.channel import Channel
from worker.service.supervisor.forkserver import leave_forkserver
from worker.service.supervisor.scratch_lock import LOCK_WAIT_S, acquire, still_used
from worker.service.supervisor.stage_log import send_records
from worker.service.supervisor.usage import Usage, peak_memory_bytes
from worker.stages.context import LeaseLost, StageContext, StageInput, StageResult
from worker.stages.handover import checked_result
from worker.stop import StopRequested
from worker.storage.held import bind_writing

_PR_SET_PDEATHSIG = 1
_PROGRESS_EVERY_S = 0.2
_USAGE_EVERY_S = 5.0
OWN_PACKAGES = {"api_client", "config", "worker"}


@dataclass(frozen=True)
class StageStart:
    """Everything a stage's process is given."""

    told: StageInput
    registry: str
    """``module:name`` of the mapping from stage to ``module:function``."""
    environment: Mapping[str, str]
    """Variables to set before the stage runs, such as the GPU of its slot."""
    log_level: str = "info"
    may_write: Roots = field(default_factory=Roots.anywhere)
    """Where its files may lie."""


class ChannelReporter:
    """A stage's way to the outside, over the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stop = threading.Event()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._reported_at = 0.0
        self._usage = Usage()
        self._used_at = time.monotonic()
        threading.Thread(target=self._listen, name="channel", daemon=True).start()

    def _listen(self) -> None:
        while not self._channel.closed:
            for message in self._channel.receive(block=True):
                if message["type"] == "stop":
                    self._stop.set()
                elif message["type"] == "confirmed":
                    self._answers.put(bool(message["ok"]))
        os.killpg(0, signal.SIGKILL)  # The worker is gone; nobody would record what this process does.

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line to the job's log."""
        kept = cut_fields(fields, FIELDS_BYTES)
        self._channel.send("log", message=cut(message, MESSAGE_BYTES), level=level, fields=kept)

    def progress(self, done: float, total: float, unit: str, detail: str = "") -> None:
        """Say how far the stage is."""
        now = time.monotonic()
        if done < total and now - self._reported_at < _PROGRESS_EVERY_S:
            return
        self._reported_at = now
        self._channel.send("progress", done=done, total=total, unit=unit, detail=cut(detail, DETAIL_BYTES))
        if now - self._used_at >= _USAGE_EVERY_S:
            self.usage()

    def usage(self) -> None:
        """Say how many bytes were moved since it was last said."""
        self._used_at = time.monotonic()
        read_bytes, written_bytes = self._usage.since()
        self._channel.send("usage", read_bytes=read_bytes, written_bytes=written_bytes)

    def waits_to_publish(self, directory: str) -> None:
        """Say that another job publishes into a directory; empty: that it is free."""
        self._channel.send("publishing", directory=cut(directory, DETAIL_BYTES))

    def should_stop(self) -> bool:
        """Whether the worker drains or the job was cancelled."""
        return self._stop.is_set()

    def confirm(self) -> None:
        """Ask whether this attempt is still the newest one.

        Raises:
            LeaseLost: it is not.
        """
        self._channel.send("confirm")
        if not self._answers.get():
            raise LeaseLost


def main(connection: socket.socket, output: socket.socket, start: StageStart) -> None:
    """Entry of the process."""
    stand_alone(output)
    channel = Channel(connection)
    os.environ.update(start.environment)
    bind_writing(start.may_write)
    send_records(channel.send, start.log_level)
    reporter = ChannelReporter(channel)
    kind, answer = _answer(start, reporter)
    reporter.usage()
    channel.send(kind, **answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # The answer is sent; a crash while libraries are torn down must not undo it.


def _answer(start: StageStart, reporter: ChannelReporter) -> tuple[str, dict[str, Any]]:
    """Run the stage; the last message, which says what came of it."""
    try:
        lock = _lock(start.told.scratch)
        result = _stage_function(start)(StageContext.of(start.told, reporter))
        result = checked_result(start.told.stage, result)
        artifacts = [artifact.model_dump(mode="json") for artifact in result.artifacts]
        facts = result.stored_facts() | {PEAK_MEMORY_FACT: peak_memory_bytes()}
        os.close(lock)
    except StopRequested:
        return "stopped", {}
    except LeaseLost:
        return "lost", {}
    except BaseException as error:  # Whatever it is, the worker must hear of it.
        return "error", {"error": as_packaging_error(error).failure.to_record()}
    return "result", {"artifacts": artifacts, "facts": facts}


def stand_alone(output: socket.socket) -> None:
    """Lead a process group of its own that ends with the worker, and write to ``output``."""
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    leave_forkserver()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="replace", closefd=False)
    faulthandler.enable(file=2)


def _lock(scratch: Path) -> int:
    """Hold the scratch directory: an older attempt that still runs on this machine must end first."""
    descriptor = acquire(scratch, LOCK_WAIT_S)
    if descriptor is None:
        raise still_used(scratch)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _stage_function(start: StageStart) -> Callable[[StageContext], StageResult]:
    functions = load_object(start.registry)
    stage = start.told.stage
    if stage not in functions:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            f"this worker has no stage {stage.value!r}",
            fields={"stage": stage.value},
        )
    function: Callable[[StageContext], StageResult] = load_object(functions[stage])
    return function


def load_object(name: str) -> Any:
    """Import ``module:attribute``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def as_packaging_error(error: BaseException) -> PackagingError:
    """Translate whatever a stage raised, by type. The one edge at which a stage's foreign errors get a code."""
    if isinstance(error, PackagingError):
        return error
    last = traceback.format_exception(error)[-12:]
    fields = {"type": type(error).__name__, "traceback": "".join(last)[-4000:]}
    text = f"{type(error).__name__}: {error}"
    if any(f"{kind.__module__}.{kind.__name__}" == "torch.OutOfMemoryError" for kind in type(error).__mro__):
        return PackagingError(ErrorCode.CUDA_OUT_OF_MEMORY, text, fields=fields)
    if isinstance(error, MemoryError):
        return PackagingError(ErrorCode.OUT_OF_MEMORY, text, fields=fields)
    if isinstance(error, OSError) and is_full(error):
        full = no_space(Path(error.filename) if isinstance(error.filename, str) else None, error)
        return PackagingError(full.code, full.message, fields=full.fields | fields)
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in OWN_PACKAGES:
        return PackagingError(ErrorCode.DEPENDENCY_MISSING, text, fields=fields)
    return PackagingError(ErrorCode.INTERNAL_ERROR, text, fields=fields)

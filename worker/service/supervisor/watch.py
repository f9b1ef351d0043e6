"""The loop beside a running stage: hands on what it reports, and ends it when it must not go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.service.supervisor.drain import Drain
from worker.service.supervisor.heart import Holding
from worker.service.supervisor.process import StageProcess
from worker.service.supervisor.relay import Relay
from worker.service.supervisor.stage_log import write_line, write_record

POLL_S = 0.2
_MEMORY_EVERY_S = 1.0
_ANSWERS = {"result", "error", "stopped", "lost"}


class Ending(StrEnum):
    """How a run of a stage's process ended."""

    RESULT = "result"
    ERROR = "error"
    CRASHED = "crashed"
    CANCELLED = "cancelled"
    HANDED_BACK = "handed_back"
    LOST = "lost"


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    ending: Ending
    answer: dict[str, Any] | None = None
    error: PackagingError | None = None
    death: str = ""
    last_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """Limits of one run, from the settings of the same names."""

    stage_timeout_s: float
    stage_memory_bytes: int | None
    cancel_grace_s: float


class Watch:
    """One run of one stage's process."""

    def __init__(
        self,
        process: StageProcess,
        holding: Holding,
        relay: Relay,
        drain: Drain,
        *,
        bounds: Bounds,
        confirm: Callable[[], bool],
        used: Callable[[int, int], None],
    ) -> None:
        self._process = process
        self._holding = holding
        self._relay = relay
        self._drain = drain
        self._bounds = bounds
        self._confirm = confirm
        self._used = used
        self._started_at = time.monotonic()
        self._memory_at = self._started_at
        self._stop_sent_at: float | None = None

    def run(self) -> Outcome:
        """Watch until the stage has ended or was ended."""
        while True:
            ended = self._process.ended()  # Asked before the last messages are read, so that none is missed.
            for message in self._process.poll(POLL_S):
                if message["type"] in _ANSWERS:
                    return self._answered(message)
                self._report(message)
            if ended:
                return self._died()
            outcome = self._must_end()
            if outcome is not None:
                self._process.kill()
                return outcome

    def _report(self, message: dict[str, Any]) -> None:
        kind = message.pop("type")
        if kind == "log":
            write_line(message)
            self._relay.log(message["message"], message["level"], **message["fields"])
        elif kind == "progress":
            self._relay.progress(**message)
        elif kind == "publishing":
            self._relay.waits_to_publish(message["directory"])
        elif kind == "record":
            write_record(message)
        elif kind == "usage":
            self._used(message["read_bytes"], message["written_bytes"])
        elif kind == "confirm":
            self._process.channel.send("confirmed", ok=self._confirm())

    def _answered(self, message: dict[str, Any]) -> Outcome:
        if message["type"] == "result":
            return Outcome(Ending.RESULT, answer=message)
        if self._holding.lost.is_set() or message["type"] == "lost":
            return Outcome(Ending.CANCELLED if self._holding.cancelled.is_set() else Ending.LOST)
        if self._holding.cancelled.is_set():
            return Outcome(Ending.CANCELLED)
        if message["type"] == "stopped":
            return Outcome(Ending.HANDED_BACK)
        return Outcome(Ending.ERROR, error=PackagingError.from_dict(message["error"]))

    def _died(self) -> Outcome:
        if self._holding.cancelled.is_set():
            return Outcome(Ending.CANCELLED)
        death = self._process.death()
        return Outcome(Ending.CRASHED, death=death, last_lines=self._process.last_lines)

    def _must_end(self) -> Outcome | None:
        now = time.monotonic()
        if self._holding.lost.is_set():
            return Outcome(Ending.LOST)
        if self._holding.cancelled.is_set():
            self._ask_to_stop(now)
            return Outcome(Ending.CANCELLED) if self._grace_is_over(now) else None
        if now - self._started_at > self._bounds.stage_timeout_s:
            return Outcome(Ending.ERROR, error=self._too_long(now - self._started_at))
        if self._drain.requested:
            self._ask_to_stop(now)
            if self._drain.impatient:
                return Outcome(Ending.HANDED_BACK)
        return self._too_large(now)

    def _ask_to_stop(self, now: float) -> None:
        if self._stop_sent_at is None:
            self._stop_sent_at = now
            self._process.stop()

    def _grace_is_over(self, now: float) -> bool:
        return self._stop_sent_at is not None and now - self._stop_sent_at >= self._bounds.cancel_grace_s

    def _too_long(self, ran_s: float) -> PackagingError:
        limit_s = self._bounds.stage_timeout_s
        return PackagingError(
            ErrorCode.STAGE_TIMEOUT,
            f"the stage ran {ran_s:.0f} s, the limit is {limit_s:g} s",
            fields={"ran_s": round(ran_s, 1), "limit_s": limit_s, "last_lines": list(self._process.last_lines)},
        )

    def _too_large(self, now: float) -> Outcome | None:
        limit = self._bounds.stage_memory_bytes
        if limit is None or now - self._memory_at < _MEMORY_EVERY_S:
            return None
        self._memory_at = now
        used = self._process.memory_bytes
        if used <= limit:
            return None
        return Outcome(
            Ending.ERROR,
            error=PackagingError(
                ErrorCode.OUT_OF_MEMORY,
                f"the stage used {used / 2**30:.2f} GiB, the limit is {limit / 2**30:.2f} GiB",
                fields={"used_bytes": used, "limit_bytes": limit},
            ),
        )

"""The one loop of the worker's threads that do something again and again: no error ends it, a stop ends it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from api_client.ledger.outage import is_away, takes_no_writes
from config.log_events import LogEvent

_log = structlog.stdlib.get_logger(__name__)

_STOP_S = 10.0
_SAY_EVERY_S = 30.0
"""Between two lines that say that Redis takes no writes; every loop of the worker meets it."""


class Loop:
    """A thread that ticks until it is stopped.

    An outage of Redis ends by itself; what Redis refuses is logged. Any other error is the worker's own mistake: it is
    logged with its traceback. The next tick comes all the same.

    Args:
        name: Of the thread.
        tick: One round.
        interval_s: Pause before every round.
        failed: Log event of a round that failed for another reason than Redis.
        rest_s: Pause after a round that failed; ``interval_s`` where not given.
    """

    def __init__(
        self, name: str, tick: Callable[[], object], interval_s: float, failed: LogEvent, *, rest_s: float | None = None
    ) -> None:
        self._tick = tick
        self._interval_s = interval_s
        self._failed = failed
        self._rest_s = interval_s if rest_s is None else rest_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def ending(self) -> bool:
        """Whether it was told to stop; a long round looks at this."""
        return self._ending.is_set()

    def start(self) -> None:
        """Start ticking.

        Raises:
            RuntimeError: the system gives no thread.
        """
        self._thread.start()

    def end(self) -> None:
        """Let the round under way be the last; for the round itself."""
        self._ending.set()

    def stop(self, timeout_s: float | None = _STOP_S) -> None:
        """Stop, and wait so long for a round under way (``None``: until it is over); also one that never started."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._ending.wait(pause_s):
            try:
                self._tick()
                pause_s = self._interval_s
            except Exception as error:
                pause_s = self._rest_s
                self._note(error)

    def _note(self, error: Exception) -> None:
        if isinstance(error, RedisError):
            note_trouble(_log, error)
        else:
            _log.error(self._failed, exc_info=error)


class Rarely:
    """Whether something may be said again: once in a while, however often it happens and in however many threads."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._said_at = float("-inf")
        self._lock = threading.Lock()

    def due(self) -> bool:
        """Whether it is time; it counts as said then."""
        with self._lock:
            now = self._clock()
            if now - self._said_at < self._every_s:
                return False
            self._said_at = now
            return True


_NO_WRITES = Rarely(_SAY_EVERY_S)


def note_trouble(log: structlog.stdlib.BoundLogger, error: RedisError) -> None:
    """Log the trouble of a loop that goes on: an outage quietly, since it ends by itself; a refusal as a warning.

    Somebody must end it where Redis answers and takes no writes, so that is said too, now and then.
    """
    if takes_no_writes(error) and _NO_WRITES.due():
        log.warning(LogEvent.REDIS_NO_WRITES, error=str(error))
    elif is_away(error):
        log.debug(LogEvent.REDIS_UNREACHABLE, error=str(error))
    else:
        log.warning(LogEvent.REDIS_REFUSED, error=str(error))

"""The console's log: one line for each entry, whatever characters a request brought into it."""

from __future__ import annotations

import json
import logging
import logging.config
import time
from collections.abc import Callable
from datetime import UTC, datetime

from api_client.contract.byte_bounds import cut
from api_client.words.formatting import clean, one_line

_WINDOW_S = 10.0
_LINES_EACH = 10
_LINES_OF_ACCESS = 1000
_KINDS_MAX = 1000
_ENTRY_BYTES = 2000
"""Of an entry, and of a line of its traceback: an address alone may have 64 KB, and anybody may ask for one."""

LOGGERS = ("uvicorn", "asyncio", "api_client")


class LineFormatter(logging.Formatter):
    """A line for people; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        line = f"{_time(record)} {record.levelname.lower():<7} {one_line(_entry(record))}"
        trace = clean(self.formatException(record.exc_info)) if record.exc_info else ""
        return "\n    ".join([line, *(cut(text, _ENTRY_BYTES) for text in trace.splitlines())])


class JsonFormatter(logging.Formatter):
    """A JSON object for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON on one line."""
        entry = {
            "timestamp": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _entry(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class LogRateLimit(logging.Filter):
    """So many lines of one kind in a while; how many were left out is said with the next one.

    A kind is a logger's message before its values are put in: whoever can cause a line can cause a million.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        kind, now = (record.name, str(record.msg)[:200]), self._clock()
        since, count = self._seen.get(kind, (now, 0))
        most = _LINES_OF_ACCESS if record.levelno < logging.WARNING else _LINES_EACH
        if now - since >= _WINDOW_S:
            left_out = count - most
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out} more like it were left out)"
                record.args = ()
            since, count = now, 0
        if len(self._seen) > _KINDS_MAX:
            self._seen.clear()
        self._seen[kind] = (since, count + 1)
        return count < most


def configure_logs(*, as_json: bool) -> None:
    """Send what the console and its server log to standard error."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": JsonFormatter if as_json else LineFormatter}},
            "filters": {"rate": {"()": LogRateLimit}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["rate"]}},
            "loggers": {name: {"handlers": ["stderr"], "level": "INFO", "propagate": False} for name in LOGGERS},
        }
    )


def _entry(record: logging.LogRecord) -> str:
    return cut(record.getMessage(), _ENTRY_BYTES)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

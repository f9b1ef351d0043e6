"""The console's log: one line for each entry, whatever characters a request brought into it."""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime

from api_client.words.formatting import clean, one_line

LOGGERS = ("uvicorn", "asyncio", "api_client")


class LineFormatter(logging.Formatter):
    """A line for people; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        line = f"{_time(record)} {record.levelname.lower():<7} {one_line(record.getMessage())}"
        trace = clean(self.formatException(record.exc_info)) if record.exc_info else ""
        return "\n    ".join([line, *trace.splitlines()])


class JsonFormatter(logging.Formatter):
    """A JSON object for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON on one line."""
        entry = {
            "timestamp": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logs(*, as_json: bool) -> None:
    """Send what the console and its server log to standard error."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": JsonFormatter if as_json else LineFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": {name: {"handlers": ["stderr"], "level": "INFO", "propagate": False} for name in LOGGERS},
        }
    )


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

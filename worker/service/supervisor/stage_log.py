"""The log of a stage's process goes into its worker's: one stream, with job, stage and attempt on every line.

The child hands its records to the worker over the channel; the worker writes them with what it knows of the attempt.
What people should read of a job goes into the job's own log instead (``context.report.log``), and from there here too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import structlog

from api_client.contract.byte_bounds import FIELDS_BYTES, MESSAGE_BYTES, cut, cut_fields
from config.log_events import LogEvent

_OWN = ("api_client", "config", "worker")
_log = structlog.stdlib.get_logger(__name__)


class ChannelHandler(logging.Handler):
    """Sends records away instead of writing them."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; its traceback becomes a field."""
        try:
            fields = dict(record.msg) if isinstance(record.msg, dict) else {"event": record.getMessage()}
            if record.exc_info and "exception" not in fields:
                fields["exception"] = logging.Formatter().formatException(record.exc_info)
            event = cut(str(fields.pop("event", "")), MESSAGE_BYTES)
            kept = cut_fields(fields, FIELDS_BYTES)
            self._send("record", logger=record.name, level=record.levelname.lower(), event=event, fields=kept)
        except Exception:  # A record that cannot be sent must not end a stage.
            self.handleError(record)


def send_records(send: Callable[..., None], log_level: str) -> None:
    """In a stage's process: send what is logged to the worker.

    Args:
        send: The channel's.
        log_level: Of our own modules; libraries are heard from ``warning`` on.
    """
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [ChannelHandler(send)]
    root.setLevel(logging.WARNING)
    for name in _OWN:
        logging.getLogger(name).setLevel(log_level.upper())
    logging.captureWarnings(True)


def write_record(message: dict[str, Any]) -> None:
    """In the worker: write a record that came over the channel. What describes the attempt is the worker's to say."""
    number = logging.getLevelNamesMapping().get(str(message["level"]).upper(), logging.WARNING)
    fields = {f"{name}_" if name in _RESERVED else name: value for name, value in message["fields"].items()}
    structlog.stdlib.get_logger(str(message["logger"])).log(number, str(message["event"]), **fields)


_RESERVED = frozenset({"event", "job_id", "stage", "attempt", "level", "logger", "timestamp", "exc_info", "stack_info"})


def write_line(message: dict[str, Any]) -> None:
    """In the worker: write a line of the job's log into the worker's too."""
    number = logging.getLevelNamesMapping().get(str(message["level"]).upper(), logging.INFO)
    _log.log(number, LogEvent.STAGE_LOG, message=message["message"], fields=message["fields"])

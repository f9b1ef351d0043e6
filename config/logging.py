"""Logging: structlog for the worker's own events and for everything that libraries log, as lines or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_QUIET = {
    "kombu": logging.WARNING,
    "amqp": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,
    # Their debug lines repeat what ours say, and do not say of which attempt.
    "celery.pool": logging.INFO,
    "celery.worker.request": logging.INFO,
}


class _LostAcknowledgement(logging.Filter):
    """Of Celery's critical entry with a traceback, for each message that it cannot acknowledge while Redis is away.

    The message may come again, and a message is only a wake-up: nothing that anybody has to be woken for.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Write it as a warning of one line."""
        if str(record.msg).startswith(("Couldn't ack", "Couldn't reject")):
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
            record.exc_info = None
        return record.levelno >= logging.getLogger().level


def name_attempt(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Add job, stage and attempt to what Celery logs of a task: its id holds them."""
    record = event.get("_record")
    data = getattr(record, "data", None)
    parts = str(data.get("id", "")).split(":") if isinstance(data, dict) else []
    if len(parts) == 3 and parts[2].isdigit():
        event.setdefault("job_id", parts[0])
        event.setdefault("stage", parts[1])
        event.setdefault("attempt", int(parts[2]))
    return event


def configure_logging(log_format: str, log_level: str) -> None:
    """Send all logging to standard error.

    Args:
        log_format: ``console`` or ``json``.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        name_attempt,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        # the default formatter shows the local variables of every frame, and passwords are among them
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())
    requests = logging.getLogger("celery.worker.request")
    requests.filters[:] = [_LostAcknowledgement()]
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))

"""A finished job's log, kept beside its outputs after Redis has let go of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import structlog
from redis.exceptions import RedisError

from api_client.errors import PackagingError
from api_client.keys import Keys
from api_client.records import read_event
from api_client.request import is_remote
from config.log_events import LogEvent
from worker.storage.atomic import atomic_write_text

EVENTS_FILE = "events.jsonl"

_log = structlog.stdlib.get_logger(__name__)


def export_events(redis: Any, keys: Keys, job_id: str, output_dir: str | None) -> Path | None:
    """Write the job's log as JSON lines into a local output directory, whole or not at all.

    Best effort: the job has succeeded already, so a failure is logged and nothing more.
    """
    if output_dir is None or is_remote(output_dir) or not Path(output_dir).is_dir():
        return None
    path = Path(output_dir) / EVENTS_FILE
    try:
        entries = redis.xrange(keys.events(job_id))
        events = [read_event(entry_id, fields["event"]) for entry_id, fields in entries]
        lines = [json.dumps(event.model_dump(mode="json"), ensure_ascii=False) for event in events]
        atomic_write_text(path, "\n".join(lines) + "\n")
    except (OSError, PackagingError, RedisError) as error:
        _log.warning(LogEvent.EVENTS_NOT_KEPT, job_id=job_id, error=str(error))
        return None
    return path

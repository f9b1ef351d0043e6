"""A finished job's log, kept beside its outputs after Redis has let go of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import structlog
from redis.exceptions import RedisError

from api_client.contract.errors import PackagingError
from api_client.contract.request import is_remote
from api_client.ledger.keys import Keys
from api_client.ledger.records import read_event
from api_client.ledger.text_redis import TextRedis
from config.log_events import LogEvent
from worker.service.supervisor.path_veil import PathVeil
from worker.storage.atomic import atomic_write_text
from worker.storage.held import hold, plain_opener

EVENTS_FILE = "events.jsonl"
_LINE_BYTES = 2**20

_log = structlog.stdlib.get_logger(__name__)


def export_events(redis: TextRedis, keys: Keys, job_id: str, output_dir: str | None, veil: PathVeil) -> Path | None:
    """Write the job's log as JSON lines into a local output directory, whole or not at all, paths veiled.

    The log of an earlier job of that directory is kept under a name with its id. A file of that name which is no job's
    log stays; then it is this job's log that gets the longer name. Best effort: the job has succeeded already, so a
    failure is logged and nothing more.
    """
    if output_dir is None or is_remote(output_dir) or not Path(output_dir).is_dir():
        return None
    try:
        with hold(Path(output_dir)) as held, held.told():
            return held.path / _export(redis, keys, job_id, held.here / EVENTS_FILE, veil)
    except (OSError, PackagingError, RedisError) as error:
        _log.warning(LogEvent.EVENTS_NOT_KEPT, job_id=job_id, error=str(error))
        return None


def _export(redis: TextRedis, keys: Keys, job_id: str, path: Path, veil: PathVeil) -> str:
    """Write the log under the name, or a longer one; the name it has."""
    owner = _owner_of(path)
    if owner is not None and owner != job_id:
        path.rename(path.with_name(_longer_name(owner)))
    elif owner is None and (path.exists() or path.is_symlink()):
        path = path.with_name(_longer_name(job_id))
    entries = redis.xrange(keys.events(job_id))
    events = [read_event(entry_id, fields["event"]) for entry_id, fields in entries]
    lines = [json.dumps(veil(event.model_dump(mode="json")), ensure_ascii=False) for event in events]
    atomic_write_text(path, "\n".join(lines) + "\n")
    if path.name == EVENTS_FILE:
        path.with_name(_longer_name(job_id)).unlink(missing_ok=True)  # from before a replay
    return path.name


def _longer_name(job_id: str) -> str:
    return f"events-{job_id}.jsonl"


def _owner_of(path: Path) -> str | None:
    """Id of the job whose log a file is; ``None`` where it is none."""
    try:
        with open(path, "rb", opener=plain_opener) as file:
            entry = json.loads(file.readline(_LINE_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    job_id = entry.get("job_id") if isinstance(entry, dict) else None
    # it becomes a part of a file name
    return job_id if isinstance(job_id, str) and re.fullmatch(r"[\w-]+", job_id) else None

"""The one Celery task: decode a wake-up, call the supervisor, translate the outcome. ``supervisor`` goes on."""

from __future__ import annotations

from typing import Any

import structlog
from celery import Celery
from redis.exceptions import RedisError

from api_client.contract.job import SCHEMA_VERSION, StageName
from api_client.contract.job_ids import is_job_id
from api_client.ledger.messages import TASK_NAME
from config.log_events import LogEvent
from worker.service.supervisor.supervisor import Supervisor

_log = structlog.stdlib.get_logger(__name__)


def register(app: Celery, supervisor: Supervisor) -> None:
    """Add ``trainpack.run_stage`` to the app."""

    @app.task(name=TASK_NAME, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]
    def run_stage(**body: Any) -> str:
        return handle(supervisor, body)


def handle(supervisor: Supervisor, body: dict[str, Any]) -> str:
    """Run the stage that a message names.

    A message that cannot be used is dropped: the plan in Redis knows what is due, and wakes a worker again.

    Returns:
        What came of it, in words.
    """
    newer = False
    try:
        version, job_id = int(body["schema_version"]), str(body["job_id"])
        newer = version > SCHEMA_VERSION
        if newer:
            _log.warning(LogEvent.JOB_NEWER, schema_version=version, job_id=job_id)
        stage, attempt = StageName(body["stage"]), int(body["attempt"])
        if not is_job_id(job_id):
            raise ValueError("no job has such an id")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        if newer:  # One that can be read goes on: its refusal to begin is noted, so people see what the job waits for.
            return "newer version"
        _log.warning(LogEvent.MESSAGE_UNREADABLE, reason=repr(error))
        return "unreadable"
    with structlog.contextvars.bound_contextvars(job_id=job_id, stage=stage.value, attempt=attempt):
        try:
            return supervisor.run_stage(job_id, stage, attempt)
        except RedisError as error:
            _log.warning(LogEvent.REDIS_UNREACHABLE, error=str(error))
            return "redis away"

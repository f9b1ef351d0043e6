"""What an ended job leaves in its scratch directory: all of it goes, or what is half-written, or nothing yet.

A job that succeeded or expired leaves nothing, nor does one that failed or was cancelled before any file was finished.
A cancelled one keeps finished artifacts and a failed one everything, for a set time: a replay can go on from there.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import structlog

from api_client.contract.job import FINISHED_STATES, JobState
from api_client.ledger.records import read_job
from api_client.ledger.text_redis import TextRedis
from config.log_events import LogEvent
from config.settings import Settings
from worker.service.state.transitions import Transitions
from worker.service.supervisor.scratch import sweep_partial
from worker.service.supervisor.scratch_lock import acquire

_log = structlog.stdlib.get_logger(__name__)


class Cleaner:
    """Cleans scratch directories on this host. A replay may come at any moment: it looks again once it holds one."""

    def __init__(self, settings: Settings, redis: TextRedis, transitions: Transitions) -> None:
        self._host = settings.host_name
        self._kept_s = settings.failed_scratch_ttl_s
        self._redis = redis
        self._transitions = transitions

    def clean(self, job_id: str, scratch: Path) -> None:
        """Remove what a job need not keep, if it has ended and nobody works in its directory.

        Raises:
            redis.exceptions.RedisError: nothing more was removed then; the reaper comes again.
        """
        if self._kept(job_id) is None:
            return
        try:
            lock = acquire(scratch)
        except FileNotFoundError:
            self._transitions.forget_scratch(job_id, self._host)
            return
        if lock is None:
            return
        try:
            kept = self._kept(job_id)
            if kept is None:
                return
            sweep_partial(scratch, kept)
            if not scratch.is_dir():
                _log.info(LogEvent.SCRATCH_REMOVED, path=str(scratch))
                self._transitions.forget_scratch(job_id, self._host)
        finally:
            os.close(lock)

    def _kept(self, job_id: str) -> frozenset[str] | None:
        """Paths of the files that stay; ``None`` where all do: the job goes on, or failed not long ago."""
        record = self._transitions.read_job(job_id)
        seconds, _ = self._redis.time()
        if record is None:
            return frozenset()
        job = record.job
        if job.get("state") not in FINISHED_STATES:
            return None
        read = read_job(replace(record, attempts=()))
        finished = frozenset(a.path for stage in read.stages for a in stage.artifacts)
        ended_s = int(seconds) - (read.finished_at.timestamp() if read.finished_at else 0)
        if job["state"] == JobState.SUCCEEDED or not finished or ended_s > self._kept_s:
            return frozenset()
        return finished if job["state"] == JobState.CANCELLED else None

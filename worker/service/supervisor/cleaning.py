"""What an ended job leaves in its scratch directory: nothing, or for a while everything. Its log is kept before that.

A job that succeeded, was cancelled or expired leaves nothing, nor does one that failed before any file was finished.
One that failed later keeps everything for a set time: a replay can go on from there.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import structlog

from api_client.contract.job import FINISHED_STATES, JobState
from api_client.ledger.keys import Keys
from api_client.ledger.records import read_job
from api_client.ledger.text_redis import TextRedis
from config.log_events import LogEvent
from config.settings import Settings
from worker.service.state.transitions import Transitions
from worker.service.supervisor.event_file import EVENTS_FILE, export_events
from worker.service.supervisor.path_veil import PathVeil
from worker.service.supervisor.scratch import remove_scratch, sweep_output
from worker.service.supervisor.scratch_lock import acquire
from worker.service.supervisor.vetting import may_write

_log = structlog.stdlib.get_logger(__name__)


class Cleaner:
    """Cleans scratch directories on this host. A replay may come at any moment: it looks again once it holds one."""

    def __init__(self, settings: Settings, redis: TextRedis, transitions: Transitions) -> None:
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self._host = settings.host_name
        self._kept_s = settings.failed_scratch_ttl_s
        self._redis = redis
        self._transitions = transitions

    def clean(self, job_id: str, scratch: Path) -> None:
        """Remove what a job need not keep, if it has ended and nobody works in its directory; keep its log first.

        So whoever removes the directory has kept the log, whichever worker died between the job's end and that.

        Raises:
            redis.exceptions.RedisError: nothing more was removed then; the reaper comes again.
        """
        if not self._goes(job_id):
            return
        try:
            lock = acquire(scratch)
        except FileNotFoundError:
            self._transitions.forget_scratch(job_id, self._host)
            return
        if lock is None:
            return
        try:
            if not self._goes(job_id):
                return
            self._keep_log(job_id, scratch)
            remove_scratch(scratch)
            if not scratch.is_dir():
                _log.info(LogEvent.SCRATCH_REMOVED, path=str(scratch))
                self._transitions.forget_scratch(job_id, self._host)
        finally:
            os.close(lock)

    def _keep_log(self, job_id: str, scratch: Path) -> None:
        """Of a job that succeeded; a half-written one of a worker that died at it goes."""
        record = self._transitions.read_job(job_id)
        if record is None or record.job.get("state") != JobState.SUCCEEDED:
            return
        job = read_job(replace(record, attempts=()))
        if may_write(job.request, self._settings):
            sweep_output(job.request.output_dir, [EVENTS_FILE])
            veil = PathVeil.of_job(job, self._settings, scratch)
            export_events(self._redis, self._keys, job_id, job.request.output_dir, veil)

    def _goes(self, job_id: str) -> bool:
        """Whether the directory goes; not while the job goes on, or where it failed not long ago."""
        record = self._transitions.read_job(job_id)
        seconds, _ = self._redis.time()
        if record is None:
            return True
        state = record.job.get("state")
        if state not in FINISHED_STATES:
            return False
        read = read_job(replace(record, attempts=()))
        ended_s = int(seconds) - (read.finished_at.timestamp() if read.finished_at else 0)
        worth_keeping = any(stage.artifacts for stage in read.stages)
        return state != JobState.FAILED or not worth_keeping or ended_s > self._kept_s

"""Finding out why a job waits, from its record and from what the fleet says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from api_client.contract.fleet import Pause, WorkerInfo
from api_client.contract.job import Job, Stage, StageState
from api_client.contract.waiting import WaitingFor, WaitReason
from api_client.ledger.messages import HOST_QUEUE_PREFIX
from api_client.ledger.records import JobRecord, time_of

HELD = (WaitReason.LABEL_LIMIT, WaitReason.PAUSED, WaitReason.PUBLISHING, WaitReason.NEWER_WORKER)
"""Reasons that scripts write beside the stage; the others follow from times and workers."""
_SHOWN = 400


@dataclass(frozen=True)
class Fleet:
    """What is known of workers and pauses at one moment."""

    workers: tuple[WorkerInfo, ...]
    pauses: Mapping[str, Pause]
    """By name: ``queue:NAME`` or ``host:NAME``."""
    now: datetime
    """By the clock of Redis."""

    def why_idle(self, queue: str) -> tuple[WaitReason, str] | None:
        """Why nobody takes from a queue now, and what of; ``None`` where a worker has a free slot for it."""
        host = queue.removeprefix(HOST_QUEUE_PREFIX) if queue.startswith(HOST_QUEUE_PREFIX) else ""
        names = [f"queue:{queue}", *([f"host:{host}"] if host else [])]
        if paused := next((name for name in names if name in self.pauses), None):
            return WaitReason.PAUSED, paused
        takers = [worker for worker in self.workers if queue in worker.queues]
        if not takers:
            return (WaitReason.HOST_AWAY, host) if host else (WaitReason.NO_WORKER, queue)
        open_ones = [worker for worker in takers if f"host:{worker.host}" not in self.pauses]
        if not open_ones:
            return WaitReason.PAUSED, f"host:{takers[0].host}"
        staying = [worker for worker in open_ones if not worker.draining]
        if not staying:
            return WaitReason.DRAINING, queue
        if all(len(worker.running) >= worker.slots for worker in staying):
            return WaitReason.BUSY, queue
        return None


def needs_fleet(job: Job) -> bool:
    """Whether why a job waits depends on the fleet."""
    stage = job.current_stage
    return not job.finished and stage is not None and stage.state is StageState.QUEUED


def waiting_for(job: Job, record: JobRecord, fleet: Fleet | None) -> WaitingFor | None:
    """Why a job waits; ``None`` where it runs, has ended, or is about to run.

    Args:
        job: The job.
        record: What it was read from.
        fleet: Needed where :func:`needs_fleet` says so.
    """
    stage = job.current_stage
    if job.finished or stage is None:
        return None
    held = _held(stage, record)
    if stage.state is StageState.RUNNING:
        return held if held is not None and held.reason is WaitReason.PUBLISHING else None
    return held if fleet is None else _queued(job, record, stage, held, fleet)


def _queued(job: Job, record: JobRecord, stage: Stage, held: WaitingFor | None, fleet: Fleet) -> WaitingFor | None:
    since = time_of(record.of_stage(stage.name, "queued_at"))
    due = time_of(record.of_stage(stage.name, "not_before"))
    if due is not None and due > fleet.now:
        return WaitingFor(reason=WaitReason.RETRY_AT, since=since, until=due)
    if held is not None and held.reason is WaitReason.LABEL_LIMIT:
        return held
    known = [worker.schema_version for worker in fleet.workers]
    if known and max(known) < job.schema_version:
        return WaitingFor(reason=WaitReason.NEWER_WORKER, since=since, what=str(job.schema_version))
    idle = fleet.why_idle(record.of_stage(stage.name, "queue"))
    if idle is None:
        return None
    reason, what = idle
    if reason is WaitReason.PAUSED and what in fleet.pauses:
        since = max(filter(None, (since, fleet.pauses[what].at)))
    return WaitingFor(reason=reason, since=since, what=what[:_SHOWN])


def _held(stage: Stage, record: JobRecord) -> WaitingFor | None:
    """What a script wrote; of anything else nothing is said."""
    reason = next((known for known in HELD if known == record.of_stage(stage.name, "held")), None)
    if reason is None:
        return None
    limit = record.of_stage(stage.name, "held_limit")
    return WaitingFor(
        reason=reason,
        since=time_of(record.of_stage(stage.name, "held_since")),
        what=record.of_stage(stage.name, "held_for")[:_SHOWN],
        limit=int(limit) if limit else None,
    )

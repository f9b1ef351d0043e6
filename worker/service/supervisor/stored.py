"""A job as a worker reads it, for running it: strictly, where clients show what they can of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from api_client.contract.job import Artifact, Job, StageName, StageState
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import ResolvedOptions
from api_client.ledger.records import UNREADABLE, JobRecord, as_planned, read_job, record_invalid
from worker.service.state.decisions import Spent
from worker.service.state.seal import Seal
from worker.service.state.transitions import Lease
from worker.stages.context import StageResult


@dataclass(frozen=True)
class Stored:
    """A job as stored, with what only the worker reads of it."""

    job: Job
    request: PackagingRequest
    counts: Spent
    rewinds: int
    """How often the job went back for missing files."""
    previous: StageResult
    """What the stage made before a replay."""
    record: JobRecord
    """As it was read."""
    unsealed: tuple[StageName, ...] = ()
    """Stages recorded as done under a seal that does not hold. Nothing of what is recorded of them is in ``job``."""


def read_stored(lease: Lease, record: JobRecord, seal: Seal) -> Stored:
    """What an attempt needs of its job.

    Raises:
        PackagingError: ``request_invalid`` and its kin, where this version cannot read the request; ``record_invalid``.
    """
    request = PackagingRequest.from_json(record.job.get("request", ""))
    try:
        ResolvedOptions.model_validate_json(record.job["options"])
        unsealed = _unsealed(lease, record, seal)
        job = read_job(record.without(unsealed, ("artifacts", "facts")))
        rewinds = int(record.job.get("rewinds") or 0)
        previous = _previous(lease, record, seal)
        request = as_planned(request, job.options, job.plan)
        return Stored(job, request, _counts(lease, record), rewinds, previous, record, unsealed)
    except UNREADABLE as error:
        raise record_invalid(lease.job_id, error) from error


def _counts(lease: Lease, record: JobRecord) -> Spent:
    retries, crashes = (int(record.of_stage(lease.stage, field) or 0) for field in ("retries", "crashes"))
    return Spent(retries, crashes)


def _unsealed(lease: Lease, record: JobRecord, seal: Seal) -> tuple[StageName, ...]:
    def holds(stage: StageName) -> bool:
        texts = {field: record.of_stage(stage, field) for field in ("artifacts", "facts", "seal")}
        return seal.holds(lease.job_id, stage, record.job, **texts)

    done = (s for s in StageName if record.of_stage(s, "state") == StageState.SUCCEEDED)
    return tuple(stage for stage in done if not holds(stage))


def _previous(lease: Lease, record: JobRecord, seal: Seal) -> StageResult:
    """What the stage made before a replay, if a worker says so: without it more is made again, and no more."""
    fields = ("previous", "previous_facts", "previous_seal")
    made, facts, sealed = (record.of_stage(lease.stage, field) for field in fields)
    texts = {"artifacts": made, "facts": facts, "seal": sealed}
    if not made or not seal.holds(lease.job_id, lease.stage, record.job, **texts):
        return StageResult()
    return StageResult.read(
        tuple(Artifact.model_validate(item) for item in json.loads(made)), dict(json.loads(facts or "{}"))
    )

"""From Redis hashes to the models of ``job``: how what the scripts store is read back. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

from pydantic import ValidationError

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import Event, EventKind
from api_client.contract.job import (
    FINISHED_STATES,
    SCHEMA_VERSION,
    Attempt,
    CallbackDelivery,
    Job,
    JobState,
    Progress,
    Stage,
    StageName,
    StageState,
)
from api_client.contract.request import EvaluationOptions, PackagingRequest
from api_client.contract.rules import ResolvedOptions, wants_evaluation
from api_client.ledger.keys import stage_field

_STAGES = frozenset(StageName)
_KINDS = frozenset(EventKind)
_REASON_CHARACTERS = 300


def time_of(text: str | None) -> datetime | None:
    """A stored time (milliseconds as text) as an aware datetime; ``None`` where unset."""
    return datetime.fromtimestamp(int(text) / 1000, UTC) if text else None


def load(text: str) -> Any:
    """Stored JSON. A lone surrogate, from a file name that is no UTF-8, becomes ``?``: no answer could carry it."""
    if "\\ud" in text:
        text = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace").decode()
    return json.loads(text)


def read_request(text: str) -> PackagingRequest:
    """The stored request; one that this version cannot read (another version wrote it) is shown as it is, unchecked."""
    try:
        return PackagingRequest.from_json(text)
    except PackagingError:
        raw = load(text)
        return PackagingRequest.model_construct(**{k: v for k, v in raw.items() if k in PackagingRequest.model_fields})


def as_planned(request: PackagingRequest, options: ResolvedOptions, plan: Sequence[StageName]) -> PackagingRequest:
    """The request as it was meant when its job was planned: a version before measured only where it was asked to."""
    if StageName.EVALUATE in plan or not wants_evaluation(request, options):
        return request
    return request.model_copy(update={"evaluation": EvaluationOptions(level="off")})


def read_options(text: str) -> ResolvedOptions:
    """The stored options; unchecked where this version cannot read them."""
    try:
        return ResolvedOptions.model_validate_json(text)
    except ValidationError:
        return ResolvedOptions.model_construct(**load(text))


@dataclass(frozen=True)
class JobRecord:
    """A job's hash, its stages' hash and its list of attempts; as stored."""

    job: Mapping[str, str]
    stages: Mapping[str, str]
    attempts: Sequence[str] = ()

    @property
    def id(self) -> str:
        """The job's id, as far as the record says it."""
        return self.job.get("id", "?")

    def of_stage(self, stage: StageName, field: str) -> str:
        """What is stored of a stage; empty where nothing is."""
        return self.stages.get(stage_field(stage, field), "")

    def without(self, stages: Iterable[StageName], fields: Iterable[str]) -> JobRecord:
        """The record without some fields of some stages."""
        gone = {stage_field(stage, field) for stage, field in product(stages, fields)}
        return replace(self, stages={field: text for field, text in self.stages.items() if field not in gone})


def read_job(record: JobRecord) -> Job:
    """Put a job together from its record.

    Of a job that a newer version stored, what this version does not know is left out.

    Raises:
        PackagingError: ``job_newer`` where the rest makes no sense, ``record_invalid`` where no version wrote it.
    """
    version = 0
    try:
        version = int(record.job.get("schema_version") or 1)
        return _read_job(record, version)
    except UNREADABLE as error:
        if version > SCHEMA_VERSION:
            raise job_newer(record.id, version) from error
        raise record_invalid(record.id, error) from error


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, OSError, RecursionError)
"""What reading a record raises that none of our scripts wrote: of another form, beyond every number or date."""


def record_invalid(job_id: str, error: Exception) -> PackagingError:
    """Error for a record that nobody can read."""
    reason = f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]
    return PackagingError(
        ErrorCode.RECORD_INVALID,
        f"the record of job {job_id[:100]} in Redis is not one that trainpack wrote: {reason}",
        fields={"job_id": job_id[:100]},
    )


def job_newer(job_id: str, version: int) -> PackagingError:
    """Error for a job that a newer version stored."""
    return PackagingError(
        ErrorCode.JOB_NEWER,
        f"job {job_id} has schema version {version}; this trainpack reads up to {SCHEMA_VERSION}",
        fields={"job_id": job_id, "schema_version": version, "known": SCHEMA_VERSION},
    )


def _read_job(record: JobRecord, version: int) -> Job:
    job = record.job
    names = [name for name in load(job["plan"]) if version <= SCHEMA_VERSION or name in _STAGES]
    plan = tuple(StageName(name) for name in names)
    folded = fold_attempts(record.attempts)
    options = read_options(job["options"])
    stages = tuple(read_stage(name, record, folded.get(name, ())) for name in plan)
    state = JobState(job["state"])
    ended_by = next((stage.error for stage in stages if stage.error), None)
    return Job(
        id=job["id"],
        schema_version=version,
        state=state,
        request=as_planned(read_request(job["request"]), options, plan),
        options=options,
        plan=plan,
        stages=stages,
        created_at=datetime.fromtimestamp(int(job["created_at"]) / 1000, UTC),
        started_at=time_of(job.get("started_at")),
        finished_at=time_of(job.get("finished_at")),
        cancel_requested=job.get("cancel_requested") == "1",
        error=ended_by if state is JobState.FAILED else None,
        callback=_callback(job) if state in FINISHED_STATES else None,
    )


def _callback(job: Mapping[str, str]) -> CallbackDelivery | None:
    """The delivery, as far as the version that ended the job noted it; of a state of another version nothing."""
    tries = int(job.get("callback_tries") or 0)
    match job.get("callback_state"):
        case ("waiting" | "retrying" | "delivered" | "given_up") as state:
            return CallbackDelivery(state=state, tries=tries)
    return None


def read_stage(name: StageName, record: JobRecord, attempts: Sequence[Attempt] = ()) -> Stage:
    """One stage of a job's record.

    What it failed with is its last attempt's error, the one place where a failure is kept. Hash fields called
    ``error``, the stage's and the job's, are copies that the scripts write for versions before this one.
    """

    def value(field: str) -> str:
        return record.of_stage(name, field)

    def document(field: str, default: Any) -> Any:
        return load(value(field)) if value(field) else default

    state = StageState(value("state") or "pending")
    return Stage(
        name=name,
        state=state,
        attempt=int(value("attempt") or 0),
        attempts=tuple(attempts),
        progress=Progress(**document("progress", {})) if value("progress") else None,
        started_at=time_of(value("started_at")),
        finished_at=time_of(value("finished_at")),
        error=attempts[-1].error if attempts and state is StageState.FAILED else None,
        artifacts=tuple(document("artifacts", [])),
        facts=document("facts", {}),
    )


def fold_attempts(entries: Sequence[str]) -> dict[StageName, list[Attempt]]:
    """Join the records of attempts started and ended; each stage's attempts in order of number."""
    merged: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in entries:
        record = load(entry)
        if "error" in record:
            record["error"] = load(record["error"])
        merged.setdefault((record["stage"], int(record["number"])), {}).update(record)
    attempts: dict[StageName, list[Attempt]] = {}
    for (stage, _), record in sorted(merged.items(), key=lambda item: item[0][1]):
        if "started_at" in record and stage in _STAGES:
            attempts.setdefault(StageName(stage), []).append(_attempt(record))
    return attempts


def _attempt(record: dict[str, Any]) -> Attempt:
    times: dict[str, Any] = {
        name: datetime.fromtimestamp(record[name] / 1000, UTC)
        for name in ("started_at", "finished_at")
        if name in record
    }
    return Attempt(**{**record, **times})


def read_event(entry_id: str, text: str) -> Event:
    """One entry of a job's stream; a kind or a stage of a newer version is shown as the job's own."""
    data = load(text)
    if data["kind"] not in _KINDS:
        data["kind"] = EventKind.JOB
    if data.get("stage") not in _STAGES:
        data["stage"] = None
    data["time"] = datetime.fromtimestamp(data["time"] / 1000, UTC)
    return Event(id=entry_id, **{key: value for key, value in data.items() if value is not None})

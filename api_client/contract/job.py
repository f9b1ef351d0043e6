"""Jobs, stages, attempts and artifacts: what the service stores and clients read.

States::

    job:    queued -> running -> succeeded | failed | cancelled        (replay: failed, cancelled, succeeded -> queued)
    stage:  pending -> queued -> running -> succeeded | failed | cancelled
                         ^          |
                         `----------'  handed back (drain), rescued (lease ran out), retried (transient error)
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from api_client.contract.artifacts import Artifact, ArtifactKind, ModelPart, is_plain_name
from api_client.contract.errors import Failure, failure_of
from api_client.contract.quality import LINES_FIELD, REPORT_FACT, QualityLine, QualityReport
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import ResolvedOptions
from api_client.contract.size_curve import CURVE_FACT, SizeCurve
from api_client.contract.stages import StageName
from api_client.contract.waiting import WaitingFor

__all__ = [
    "FINISHED_STATES",
    "SCHEMA_VERSION",
    "Artifact",
    "ArtifactKind",
    "Attempt",
    "AttemptOutcome",
    "CallbackDelivery",
    "Job",
    "JobState",
    "ModelPart",
    "Progress",
    "Stage",
    "StageName",
    "StageState",
    "UsedBase",
    "is_plain_name",
]

SCHEMA_VERSION = 1
"""Version of stored jobs and messages.

Raised when a worker of before could not run a job of now rightly. A worker runs jobs of its own version and of older
ones, and leaves newer ones alone. A new field with a default, a fact more, and an artifact more of a known kind need no
new version.
"""


StateName = Literal["queued", "running", "succeeded", "failed", "cancelled"]
"""The states' names that type checkers know."""


class JobState(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


PEAK_MEMORY_FACT = "peak_memory_bytes"
"""Among the facts of a stage: the most resident memory that its process, or one that it started, had."""
FINISHED_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class StageState(StrEnum):
    """State of a stage."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDED_STAGE = frozenset({StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED})


class AttemptOutcome(StrEnum):
    """How an attempt ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"
    """A transient error; another attempt follows."""
    RESCUED = "rescued"
    """Its lease ran out: the worker or its machine is gone."""
    CRASHED = "crashed"
    """Its process died; another attempt follows while any are left."""
    HANDED_BACK = "handed_back"
    """The worker drained; no retry is spent."""
    CANCELLED = "cancelled"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Record):
    """How far a stage is."""

    done: float
    total: float
    unit: str
    """``bytes``, ``tensors``, ``chunks``, ``files``."""
    rate: float | None = None
    """Units a second."""
    detail: str = ""

    @property
    def fraction(self) -> float:
        """Part done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the present rate."""
        return (self.total - self.done) / self.rate if self.rate else None


class Attempt(_Record):
    """One execution of one stage."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None = None
    outcome: AttemptOutcome = AttemptOutcome.RUNNING
    error: dict[str, Any] | None = None

    @property
    def failure(self) -> Failure | None:
        """What it failed with, read."""
        return failure_of(self.error)


class Stage(_Record):
    """One stage of one job."""

    name: StageName
    state: StageState = StageState.PENDING
    attempt: int = 0
    """Number of the newest attempt; 0 before the first."""
    attempts: tuple[Attempt, ...] = ()
    progress: Progress | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: dict[str, Any] | None = None
    artifacts: tuple[Artifact, ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict)

    @property
    def failure(self) -> Failure | None:
        """What it failed with, read."""
        return failure_of(self.error)

    @property
    def duration_s(self) -> float | None:
        """Seconds of the attempt that ended it; waiting, and attempts whose results were not taken, are not counted."""
        last = self.attempts[-1] if self.attempts else None
        if last is not None and last.finished_at is not None:
            return (last.finished_at - last.started_at).total_seconds()
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def peak_memory_bytes(self) -> int | None:
        """Most resident memory of the process that ended it, mapped files included; ``None`` where nobody counted."""
        peak = self.facts.get(PEAK_MEMORY_FACT)
        return peak if type(peak) is int and peak > 0 else None

    def seconds(self, now: datetime | None = None) -> float | None:
        """As :attr:`duration_s`; while it runs, the seconds of the present attempt."""
        if self.state is not StageState.RUNNING:
            return self.duration_s if self.state in _ENDED_STAGE else None
        started = self.attempts[-1].started_at if self.attempts else self.started_at
        return None if started is None else ((now or datetime.now(UTC)) - started).total_seconds()


class UsedBase(_Record):
    """The weights that a job's files are made from, as ``prepare`` found them."""

    path: str
    """Directory on the worker; for a remote model, of its copy there."""
    digest: str
    """SHA-256 over its config and the headers of its weights, as hexadecimal digits; equal for copies of a model."""
    named_by: str | None = None
    """File of the run that names it, where the base model of the task is gone and this one was taken instead."""


class CallbackDelivery(_Record):
    """How far the announcement of a job's last end has come."""

    state: Literal["waiting", "retrying", "delivered", "given_up"]
    """``waiting`` until the first try has ended."""
    tries: int = 0


class Job(_Record):
    """One accepted request, as clients see it."""

    id: str
    schema_version: int = SCHEMA_VERSION
    state: JobState
    request: PackagingRequest
    options: ResolvedOptions
    plan: tuple[StageName, ...]
    stages: tuple[Stage, ...] = ()
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested: bool = False
    error: dict[str, Any] | None = None
    """``Failure.to_record()`` of what ended a failed job; as ``failure`` it is read."""
    callback: CallbackDelivery | None = None
    """Of a job with ``callback_url`` that has ended; what went wrong stands in its log."""
    waiting_for: WaitingFor | None = None
    """Why it does not run now; ``None`` where it runs, has ended, or is about to run."""

    @property
    def failure(self) -> Failure | None:
        """What ended a failed job, read."""
        return failure_of(self.error)

    @property
    def finished(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.state in FINISHED_STATES

    @property
    def shown_state(self) -> str:
        """The state that people are shown: ``cancelling`` for a job that was asked to stop and has not yet."""
        return "cancelling" if self.cancel_requested and not self.finished else self.state.value

    def seconds(self, now: datetime | None = None) -> float | None:
        """Seconds of the attempts that made the result, the one under way to now; ``None`` before the first.

        Waiting between them is not counted, nor is what a replay made again.
        """
        if self.started_at is None:
            return None
        if any(stage.attempts for stage in self.stages):
            return sum(stage.seconds(now) or 0.0 for stage in self.stages)
        return ((self.finished_at or now or datetime.now(UTC)) - self.started_at).total_seconds()

    @property
    def newer(self) -> bool:
        """Whether a newer version stored it. Stages and fields that only that version knows are left out here."""
        return self.schema_version > SCHEMA_VERSION

    @property
    def outputs(self) -> tuple[Artifact, ...]:
        """The published files; empty until ``publish`` has succeeded."""
        return next((stage.artifacts for stage in self.stages if stage.name is StageName.PUBLISH), ())

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own, above a property
    @property
    def base_used(self) -> UsedBase | None:
        """The base model that was used; ``None`` before ``prepare`` has found it."""
        facts = self.facts_of(StageName.PREPARE)
        inputs = facts.get("inputs")
        model = inputs.get("base_model") if isinstance(inputs, dict) else None
        path, digest = facts.get("base_dir"), model.get("header_fingerprint") if isinstance(model, dict) else None
        if not isinstance(path, str) or not isinstance(digest, str):
            return None
        named_by = facts.get("base_named_by")
        return UsedBase(path=path, digest=digest, named_by=named_by if isinstance(named_by, str) else None)

    @property
    def report(self) -> QualityReport | None:
        """How good the files are, as ``evaluate`` recorded it; ``None`` before it has run."""
        return QualityReport.read(self.facts_of(StageName.EVALUATE).get(REPORT_FACT))

    @property
    def curve(self) -> SizeCurve | None:
        """Size against predicted KLD for its model; ``None`` where it has no fit, or none yet."""
        return SizeCurve.read(self.facts_of(StageName.QUANTIZE).get(CURVE_FACT))

    @computed_field  # type: ignore[prop-decorator]  # as above
    @property
    def quality(self) -> tuple[QualityLine, ...]:
        """A line of figures for each file that was measured; of a job that they ended, those it ended with."""
        report = self.report
        if report is not None:
            return tuple(QualityLine.of(file) for file in report.files)
        failure = self.failure
        return QualityLine.read_all(failure.fields.get(LINES_FIELD)) if failure is not None else ()

    def facts_of(self, name: StageName) -> Mapping[str, Any]:
        """What a stage recorded beside its files; empty where the plan has none of that name, or it has not run."""
        return next((stage.facts for stage in self.stages if stage.name is name), {})

    @property
    def current_stage(self) -> Stage | None:
        """The stage that is queued or running, if any."""
        return next((s for s in self.stages if s.state in (StageState.QUEUED, StageState.RUNNING)), None)

    def stage(self, name: StageName) -> Stage:
        """Look a stage up; ``KeyError`` if the plan has none of that name."""
        for stage in self.stages:
            if stage.name is name:
                return stage
        raise KeyError(name)

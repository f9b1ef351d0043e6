"""Bodies of answers that are no models of the contract, and what the OpenAPI document says of errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api_client.console.api.times import Time
from api_client.console.problems import ErrorBody, status_of
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import Event
from api_client.contract.fleet import HealthInfo, QueueInfo, WorkerInfo
from api_client.contract.job import Artifact, Job, JobState, StageName
from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import Recommendation
from api_client.contract.templates import Template

_C = ErrorCode


def errors(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    """What the document says of a route's errors: the statuses, each with the codes that have it."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status = status_of(PackagingError(code, ""))
        said = by_status.setdefault(status, {"model": ErrorBody, "description": ""})
        said["description"] = ", ".join(part for part in (said["description"], f"`{code.value}`") if part)
    return by_status


def as_json(responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """The same errors for a route whose own answers are no JSON."""
    schema = {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}
    return {
        status: {"description": said["description"], "content": {"application/json": {"schema": schema}}}
        for status, said in responses.items()
    }


COMMON_ERRORS = errors(
    _C.UNAUTHENTICATED,
    _C.TOKEN_EXPIRED,
    _C.PERMISSION_DENIED,
    _C.REQUEST_TOO_LARGE,
    _C.HOST_NOT_ALLOWED,
    _C.REQUEST_INVALID,
    _C.RATE_LIMITED,
    _C.INTERNAL_ERROR,
    _C.REDIS_UNREACHABLE,
    _C.REDIS_NO_WRITES,
)
NO_JOB = errors(_C.JOB_NOT_FOUND)
NO_ANSWER = errors(_C.PERMISSION_DENIED, _C.PATH_NOT_ALLOWED, _C.QUESTION_UNANSWERED, _C.STORAGE_UNREACHABLE)


class JobPage(BaseModel):
    """Some jobs, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None
    """Give it as ``cursor`` for the next page; ``null`` on the last one."""


class EventPage(BaseModel):
    """Some entries of a job's log, oldest first."""

    events: tuple[Event, ...]
    next_after: str
    """Give it as ``after`` for what follows; where nothing new came, it is the one that was given."""
    state: JobState
    """The job's, read before the entries: once it has ended and a page is empty, the log is complete."""


class ReplayBody(BaseModel):
    """From where to run a job again."""

    model_config = ConfigDict(extra="forbid")

    from_stage: StageName | None = None
    """Not given: the first stage that did not succeed."""


class BulkReplayBody(BaseModel):
    """Which failed jobs to run again."""

    model_config = ConfigDict(extra="forbid")

    since: Time
    """Only jobs submitted at or after this time. Without a zone: UTC."""
    code: ErrorCode | None = None
    """Only jobs that failed with this code."""


class ReplayedJobs(BaseModel):
    """The jobs that run again."""

    job_ids: tuple[str, ...]


class PublishedFile(Artifact):
    """A published file, and where it can be fetched."""

    link: str | None = None
    """Address that needs no login, valid for a while; ``null`` where the file was not uploaded or cannot be signed."""


class Outputs(BaseModel):
    """The published files of a job; none until it has succeeded."""

    job_id: str
    state: JobState
    outputs: tuple[PublishedFile, ...]


class TemplateList(BaseModel):
    """The built-in templates, then the site's own."""

    templates: tuple[Template, ...]


class QuantTypeDocument(BaseModel):
    """A quant type, with what a person needs to choose it."""

    name: QuantType
    file_type: int
    family: str
    bits_per_weight: float
    needs_imatrix: bool
    recommended: bool
    quality_rank: int
    """Expected quality, the higher the better."""
    description_en: str
    description_zh: str


class QuantTypeList(BaseModel):
    """All quant types."""

    quant_types: tuple[QuantTypeDocument, ...]


class RecommendationDocument(Recommendation):
    """All types for one model and one place, the best first."""

    host: str
    """Worker's machine that measured the model."""
    model: str
    architecture: str
    trained_context: int
    """Longest context the model was trained for; 0 if not known."""


class WorkerList(BaseModel):
    """Workers that are heard from."""

    workers: tuple[WorkerInfo, ...]


class QueueList(BaseModel):
    """Queues of the service."""

    queues: tuple[QueueInfo, ...]


class ServiceHealth(BaseModel):
    """How the service is."""

    redis: HealthInfo
    warnings: tuple[str, ...] = Field(description="What an operator should change.")
    workers: int
    event_streams: int
    """Event streams open on this console."""


class Health(BaseModel):
    """Whether the console can work."""

    status: Literal["ok"] = "ok"

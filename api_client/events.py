"""Events: the entries of a job's log stream."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api_client.job import StageName


class EventKind(StrEnum):
    """Kind of an event. The first four are the log kinds that people know from the training console."""

    MERGE_LORA = "Merge LoRA"
    GGUF_CONVERSION = "GGUF conversion"
    QUANTIZATION = "Quantization"
    COMMAND_SUCCESS = "Command success"
    PREPARE = "Prepare"
    IMPORTANCE_MATRIX = "Importance matrix"
    LORA_EXPORT = "LoRA export"
    VERIFY = "Verify"
    PUBLISH = "Publish"
    PROGRESS = "Progress"
    JOB = "Job"
    """The job's own life: submitted, attempts started, retried, rescued, cancelled, finished."""
    TRUNCATED = "Truncated"
    """Stands first where older entries of a long log were dropped."""


STAGE_KINDS: dict[StageName, EventKind] = {
    StageName.PREPARE: EventKind.PREPARE,
    StageName.MERGE: EventKind.MERGE_LORA,
    StageName.CONVERT: EventKind.GGUF_CONVERSION,
    StageName.IMATRIX: EventKind.IMPORTANCE_MATRIX,
    StageName.QUANTIZE: EventKind.QUANTIZATION,
    StageName.EXPORT_LORA: EventKind.LORA_EXPORT,
    StageName.VERIFY: EventKind.VERIFY,
    StageName.PUBLISH: EventKind.PUBLISH,
}


class Event(BaseModel):
    """One entry of a job's log stream."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    """Stream id, ordered; pass the last one seen to resume."""
    time: datetime
    job_id: str
    stage: StageName | None = None
    attempt: int | None = None
    level: Literal["debug", "info", "warning", "error"] = "info"
    kind: EventKind
    message: str
    fields: dict[str, Any] = Field(default_factory=dict)
    """Facts for machines; progress events have ``done``, ``total``, ``unit`` and ``rate``."""

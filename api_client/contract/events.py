"""Events: the entries of a job's log stream."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api_client.contract.event_kinds import EventKind
from api_client.contract.stages import StageName

__all__ = ["Event", "EventKind"]


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

"""A training task as the orchestrator knows it: what it fills into a packaging request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.locations import Location
from api_client.contract.request_fields import describe


class TaskStatus(StrEnum):
    """Status of a training task. Only ended tasks can be packaged."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


PACKAGEABLE = frozenset({TaskStatus.COMPLETED, TaskStatus.STOPPED, TaskStatus.FAILED})


class TrainingTask(BaseModel):
    """A training run, as its orchestrator describes it.

    A failed task may be packaged when a usable checkpoint or model exists, which the ``prepare`` stage finds out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=describe("task."))

    task_id: str
    status: TaskStatus
    kind: Literal["pretrain", "sft"] = "sft"
    finetuning: Literal["lora", "full"] = "lora"
    base_model: Location
    output_dir: Location

    def require_packageable(self) -> None:
        """Refuse a task that has not ended.

        Raises:
            PackagingError: ``task_not_packageable``.
        """
        if self.status not in PACKAGEABLE:
            raise PackagingError(
                ErrorCode.TASK_NOT_PACKAGEABLE,
                f"task {self.task_id} is {self.status.value}; only completed, stopped or failed tasks can be packaged",
                fields={"task_id": self.task_id, "status": self.status.value},
            )


TaskScores = Mapping[
    Annotated[str, Field(min_length=1, max_length=200)],
    Mapping[Annotated[str, Field(min_length=1, max_length=200)], float],
]
"""Value by metric by checkpoint name, e.g. ``{"checkpoint-900": {"accuracy": 0.91}}``."""


class RegisteredTask(BaseModel):
    """A training task that its orchestrator told of, with the scores of an evaluation of its own.

    They win over those that the trainer wrote: where a job of the task asks for the checkpoint ``best``, it is theirs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: TrainingTask
    scores: TaskScores = Field(default={}, max_length=1000)
    metric: str | None = Field(default=None, max_length=200)
    """The metric that decides; with scores of one metric alone, that one."""
    greater_is_better: bool = True
    registered_at: datetime | None = None
    """When, by the clock of whoever registered it."""

    @field_validator("scores")
    @classmethod
    def _finite(cls, value: TaskScores) -> TaskScores:
        for checkpoint, scores in value.items():
            if len(scores) > MOST_METRICS:
                raise ValueError(f"{checkpoint} has {len(scores)} metrics, at most {MOST_METRICS} are kept")
            if not all(math.isfinite(score) for score in scores.values()):
                raise ValueError(f"a score of {checkpoint} is not finite")
        return value

    def is_of(self, run: str) -> bool:
        """Whether a run's directory is this task's; another task may have had the same id."""
        return self.task.output_dir.rstrip("/") == run.rstrip("/")

    @property
    def deciding(self) -> str | None:
        """The metric that decides which checkpoint is best, if one does."""
        names = {name for scores in self.scores.values() for name in scores}
        return self.metric or (next(iter(names)) if len(names) == 1 else None)

    @property
    def best(self) -> str | None:
        """Name of the best checkpoint by these scores; of equals the one that comes first. ``None`` without any."""
        metric = self.deciding
        scored = {name: scores[metric] for name, scores in self.scores.items() if metric and metric in scores}
        if not scored:
            return None
        return (max if self.greater_is_better else min)(scored, key=scored.__getitem__)


MOST_METRICS = 50

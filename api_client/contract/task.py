"""A training task as the orchestrator knows it: what it fills into a packaging request."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

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

"""Training tasks that an orchestrator registers, and the runs that workers see: what the new job page offers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool

from api_client.console.api.documents import NO_ANSWER, errors
from api_client.console.api.parameters import Reader, Submitter
from api_client.console.context import AskWorkers, Client
from api_client.contract.errors import ErrorCode
from api_client.contract.task import RegisteredTask, TaskScores, TrainingTask
from api_client.ledger.questions import RunsAnswer

router = APIRouter(tags=["tasks"])
_TASK: dict[str, JsonValue] = {
    "task_id": "42", "status": "completed", "base_model": "/models/base", "output_dir": "/runs/42",
}  # fmt: skip


class TaskBody(BaseModel):
    """A training task, with the scores of one's own evaluation."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"task": _TASK, "scores": {"checkpoint-900": {"accuracy": 0.91}}}]},
    )

    task: TrainingTask
    scores: TaskScores = Field(default={}, max_length=1000)
    metric: str | None = Field(default=None, max_length=200)
    """The metric that decides which checkpoint is best; not needed where there is one alone."""
    greater_is_better: StrictBool = True
    replace: StrictBool = False
    """Take the place of a task of the same id that has other paths."""


class TaskList(BaseModel):
    """Registered training tasks, newest first."""

    tasks: tuple[RegisteredTask, ...]


@router.post("/tasks", responses=errors(ErrorCode.TASK_CONFLICT, ErrorCode.REQUEST_INVALID))
def register_task(body: TaskBody, client: Client, _: Submitter) -> RegisteredTask:
    """Tell of a training task, so that the console offers it; again whenever its status or scores are others."""
    return client.register_task(
        body.task, body.scores, metric=body.metric, greater_is_better=body.greater_is_better, replace=body.replace
    )


@router.get("/tasks")
def list_tasks(client: Client, _: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> TaskList:
    """List the training tasks that were registered."""
    return TaskList(tasks=tuple(client.tasks(limit)))


@router.get("/runs", responses=NO_ANSWER)
def list_runs(
    questions: AskWorkers,
    _: Submitter,
    search: Annotated[str, Query(description="A part of the path.", max_length=200)] = "",
) -> RunsAnswer:
    """List the training runs below the directories that workers are told of, and what is missing of them."""
    return questions.runs(search)

"""Jobs, events and checkpoints for tests of what people see."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

from rich.console import Console

from api_client.cli.output import Output
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import Event, EventKind
from api_client.contract.job import (
    Artifact,
    ArtifactKind,
    Attempt,
    AttemptOutcome,
    Job,
    JobState,
    Progress,
    Stage,
    StageName,
    StageState,
)
from api_client.contract.plan import plan_stages
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request
from api_client.words.language import Language

START = datetime(2025, 11, 23, 12, 0, 0, tzinfo=UTC)
NOW = START + timedelta(seconds=95)
HOSTILE = "evil\x1b[2J\x1b]0;title\x07\u202e [red]markup[/red] :boom:"
FAILURE = PackagingError(
    ErrorCode.DISK_SPACE_INSUFFICIENT, "/out: needed 31.2 GB, free 12.0 GB", fields={"needed_bytes": 31_200_000_000}
)


PROGRESS = Progress(done=1.2e9, total=2e9, unit="bytes", rate=410e6, detail="blk.7.ffn_down")


def make_job(
    at: str | None = "convert",
    *,
    state: JobState | None = None,
    progress: Progress | None = PROGRESS,
    **request: Any,
) -> Job:
    """A job whose stages before ``at`` have succeeded and whose stage ``at`` runs; ``at=None``: all have succeeded."""
    data = {"base_model": "/models/base", "checkpoint": "/runs/42/checkpoint-900", "output_dir": "/runs/42/package"}
    resolved, options = resolve_request(PackagingRequest(**data | request))
    plan = plan_stages(resolved, options)
    position = len(plan) if at is None else plan.index(StageName(at))
    stages = [_stage(name, index - position, progress) for index, name in enumerate(plan)]
    if at is None:
        stages[-1] = stages[-1].model_copy(update={"artifacts": OUTPUTS})
    state = state or (JobState.SUCCEEDED if at is None else JobState.RUNNING)
    return Job(
        id="20251123-120000-abc123",
        state=state,
        request=resolved,
        options=options,
        plan=plan,
        stages=tuple(stages),
        created_at=START,
        started_at=START,
        finished_at=NOW if state not in (JobState.QUEUED, JobState.RUNNING) else None,
    )


def _stage(name: StageName, distance: int, progress: Progress | None) -> Stage:
    if distance < 0:
        return Stage(
            name=name,
            state=StageState.SUCCEEDED,
            attempt=1,
            started_at=START,
            finished_at=START + timedelta(seconds=1.25),
            progress=Progress(done=272, total=272, unit="tensors"),
        )
    if distance == 0:
        return Stage(name=name, state=StageState.RUNNING, attempt=1, started_at=START, progress=progress)
    return Stage(name=name)


def failed_job() -> Job:
    """A job whose convert stage failed in its third attempt."""
    job = make_job("convert", state=JobState.FAILED)
    attempts = (
        Attempt(
            number=1,
            worker="host-a-1",
            started_at=START,
            finished_at=START + timedelta(seconds=3),
            outcome=AttemptOutcome.CRASHED,
            error=PackagingError(ErrorCode.STAGE_CRASHED, "signal 11").to_dict(),
        ),
        Attempt(number=2, worker="host-b-7", started_at=START, outcome=AttemptOutcome.RESCUED),
        Attempt(
            number=3,
            worker="host-a-1",
            started_at=START,
            finished_at=NOW,
            outcome=AttemptOutcome.FAILED,
            error=FAILURE.to_dict(),
        ),
    )
    stages = tuple(
        stage.model_copy(
            update={
                "state": StageState.FAILED,
                "attempt": 3,
                "attempts": attempts,
                "error": FAILURE.to_dict(),
                "finished_at": NOW,
            }
        )
        if stage.name is StageName.CONVERT
        else stage
        for stage in job.stages
    )
    return job.model_copy(update={"stages": stages, "error": FAILURE.to_dict() | {"stage": "convert"}})


OUTPUTS = (
    Artifact(
        name="merged_model.gguf",
        path="/runs/42/package/merged_model.gguf",
        kind=ArtifactKind.GGUF,
        size_bytes=2_000_000_000,
        sha256="ab" * 32,
        url="s3://trainpack/20251123-120000-abc123/merged_model.gguf",
    ),
    Artifact(
        name="merged_model-Q4_K_M.gguf",
        path="/runs/42/package/merged_model-Q4_K_M.gguf",
        kind=ArtifactKind.QUANTIZED,
        size_bytes=610_000_000,
        sha256="cd" * 32,
        quant_type="Q4_K_M",
    ),
)


def make_event(message: str = "works", kind: EventKind = EventKind.GGUF_CONVERSION, **more: Any) -> Event:
    """A log entry."""
    data = {"time": START, "job_id": "20251123-120000-abc123", "stage": StageName.CONVERT, "attempt": 1}
    return Event(**{**data, "kind": kind, "message": message, **more})


def make_output(
    width: int = 120, language: Language = Language.EN, *, terminal: bool = False, as_json: bool = False
) -> Output:
    """An output into memory; ``results.file`` and ``notes.file`` hold what was written."""

    def console() -> Console:
        return Console(
            file=io.StringIO(),
            width=width,
            height=24,
            markup=False,
            emoji=False,
            highlight=False,
            force_terminal=terminal,
            color_system=None,
            legacy_windows=False,
        )

    return Output(as_json, language, console(), console())


def printed(output: Output, *renderables: Any) -> str:
    """What results look like."""
    output.show(*renderables)
    assert isinstance(output.results.file, StringIO)
    return output.results.file.getvalue()

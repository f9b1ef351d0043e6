"""One job as ``status`` shows it: what was asked for, the stages, the error, the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from api_client.cli.failures import error_text
from api_client.cli.output import Output
from api_client.cli.render.states import mark, stage_name, state_text
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.contract.job import Attempt, AttemptOutcome, Job, Stage, StageState
from api_client.contract.quality import QualityLine
from api_client.contract.waiting import WaitingFor
from api_client.ledger.records import job_newer
from api_client.words.figures import NONE, format_kld, format_share
from api_client.words.formatting import (
    clean,
    format_age,
    format_duration,
    format_progress,
    format_size,
    format_time,
    one_line,
)

_QUIET_OUTCOMES = {AttemptOutcome.RUNNING, AttemptOutcome.SUCCEEDED}


def job_view(output: Output, job: Job, width: int, now: datetime | None = None) -> Iterator[RenderableType]:
    """Everything about a job."""
    yield headline(output, job, now)
    if job.waiting_for is not None:
        yield waiting_text(output, job.waiting_for, now)
    yield _facts(output, job)
    if job.newer:
        yield error_text(output, job_newer(job.id, job.schema_version))
    yield Text()
    yield stage_table(output, job, width, now)
    attempts = [line for stage in job.stages for line in _attempts(output, stage)]
    if attempts:
        yield Text()
        yield from attempts
    if (failure := job.failure) is not None:
        yield Text()
        yield error_text(output, failure)
    if job.outputs:
        yield Text()
        yield outputs_table(output, job, width)
    elif job.quality:
        yield Text()
        yield quality_table(output, job.quality, width)


def headline(output: Output, job: Job, now: datetime | None = None) -> Text:
    """Id, state, template and time of a job on one line."""
    line = Text.assemble(
        (job.id, "bold"), "  ", state_text(output.language, job.shown_state), "  ", one_line(job.request.template)
    )
    seconds = job.seconds(now)
    if seconds is not None:
        line.append(f"  {format_duration(seconds)}", style="dim")
    return line


def waiting_text(output: Output, waiting: WaitingFor, now: datetime | None = None) -> Text:
    """Why a job waits, since when, and what frees it."""
    told = waiting.told(output.language)
    line = Text.assemble((f"  {output.text('waits')}: ", "dim"), (told.why, "yellow"))
    if told.since is not None:
        line.append(f" ({output.text('since_age', age=format_age(told.since, now))})", style="dim")
    line.append(f"\n  {output.text('freed')}: ", style="dim")
    return line.append(told.frees)


def _facts(output: Output, job: Job) -> Text:
    request = job.request
    facts: list[tuple[str, Any]] = [
        ("task", request.task.task_id if request.task else None),
        ("base_model", request.base_model),
        ("base_used", _base_used(output, job)),
        ("checkpoint", request.checkpoint),
        ("output_dir", request.output_dir),
        ("quant_types", ", ".join(job.options.quant_types)),
        ("labels", ", ".join(f"{key}={value}" for key, value in request.labels.items())),
        ("created", format_time(job.created_at)),
    ]
    lines = Text()
    for key, value in facts:
        if value:
            lines.append(f"\n  {output.text(key)}: " if lines else f"  {output.text(key)}: ", style="dim")
            lines.append(one_line(value))
    return lines


def _base_used(output: Output, job: Job) -> str | None:
    """Which weights the files are made of, and why they are not those of the request where they are not."""
    used = job.base_used
    if used is None:
        return None
    told = f"{used.path}  {used.digest[:12]}"
    return told if used.named_by is None else f"{told}  {output.text('base_instead', file=used.named_by)}"


def stage_table(output: Output, job: Job, width: int, now: datetime | None = None) -> RenderableType:
    """The stages with state, duration, attempts and how far each is."""
    stages = job.stages
    durations = [stage.seconds(now) for stage in stages]
    ascii_only = output.results.options.ascii_only
    return fit_table(
        [
            Column("", [mark(stage.state.value, ascii_only=ascii_only) for stage in stages], ALWAYS),
            Column(output.text("stage"), [stage_name(output.language, stage.name) for stage in stages], ALWAYS),
            Column(output.text("state"), [state_text(output.language, stage.state.value) for stage in stages], 8),
            Column(
                output.text("duration"),
                ["" if seconds is None else format_duration(seconds) for seconds in durations],
                7,
                right=True,
            ),
            Column(output.text("attempt"), [str(s.attempt) if s.attempt > 1 else "" for s in stages], 4, right=True),
            Column("", [_progress(stage) for stage in stages], 6),
        ],
        width,
    )


def _progress(stage: Stage) -> str:
    progress = stage.progress
    if stage.state is not StageState.RUNNING or progress is None:
        return ""
    amount = format_progress(progress.done, progress.total, progress.unit)
    return f"{progress.fraction:.0%}  {amount}  {progress.detail}".rstrip()


def _attempts(output: Output, stage: Stage) -> Iterator[Text]:
    """A line for every attempt of a stage that needed more than one, or whose one did not simply succeed."""
    if len(stage.attempts) > 1 or any(attempt.outcome not in _QUIET_OUTCOMES for attempt in stage.attempts):
        for attempt in stage.attempts:
            yield _attempt_line(output, stage, attempt)


def _attempt_line(output: Output, stage: Stage, attempt: Attempt) -> Text:
    seconds = (attempt.finished_at - attempt.started_at).total_seconds() if attempt.finished_at else None
    line = Text(f"  {stage_name(output.language, stage.name)} {output.text('attempt')} {attempt.number}: ")
    line.append_text(state_text(output.language, attempt.outcome.value))
    if seconds is not None:
        line.append(f" ({format_duration(seconds)})", style="dim")
    line.append(f" {one_line(attempt.worker)}", style="dim")
    if (failure := attempt.failure) is not None:
        line.append(f"  {clean(str(failure))}")
    return line


def outputs_table(output: Output, job: Job, width: int, *, places: bool = True) -> RenderableType:
    """The published files: name, size, how good they are, sha256, and where they are, as far as there is room."""
    artifacts = job.outputs
    lines = {line.name: line for line in job.quality}
    measured = [lines.get(artifact.shard_of or artifact.name) for artifact in artifacts]
    return fit_table(
        [
            Column(output.text("artifact"), [artifact.name for artifact in artifacts], ALWAYS),
            Column(output.text("size"), [format_size(a.size_bytes) for a in artifacts], 8, right=True),
            *_figures(output, measured),
            Column(output.text("sha256"), [a.sha256 if width >= 160 else a.sha256[:12] for a in artifacts], 5),
            *([Column(output.text("url"), [artifact.url or "" for artifact in artifacts], 4)] if places else []),
        ],
        width,
    )


def quality_table(output: Output, lines: Sequence[QualityLine], width: int) -> RenderableType:
    """How good files are that were not published."""
    return fit_table(
        [Column(output.text("artifact"), [line.name for line in lines], ALWAYS), *_figures(output, lines)], width
    )


def _figures(output: Output, lines: Sequence[QualityLine | None]) -> Iterator[Column]:
    """Columns of figures, empty for what was not measured."""

    def column(key: str, cells: list[str], keep: int) -> Column:
        return Column(output.text(key), ["" if cell == NONE else cell for cell in cells], keep, right=True)

    known = [line or QualityLine(name="") for line in lines]
    yield column("mean_kld", [format_kld(line.mean_kld) for line in known], 7)
    yield column("same_top", [format_share(line.same_top) for line in known], 6)
    yield column("retention", [format_share(line.retention) for line in known], 7)
    yield Column("", [line.not_judged or "" for line in known], 1)

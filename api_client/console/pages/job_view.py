"""Jobs as the pages show them: rows, stages and log lines with every word chosen. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from api_client.cli.language import state_word
from api_client.cli.render.states import job_seconds, stage_seconds
from api_client.console.pages.texts import text
from api_client.errors import Failure
from api_client.events import Event, EventKind
from api_client.job import Attempt, AttemptOutcome, Job, JobState, Progress, Stage, StageState
from api_client.language import Language
from api_client.templates import Template

LOG_KINDS: Final = (
    EventKind.MERGE_LORA,
    EventKind.GGUF_CONVERSION,
    EventKind.QUANTIZATION,
    EventKind.COMMAND_SUCCESS,
)
"""The four kinds that people know from the training console."""
OTHER_KINDS: Final = "other"
_QUIET = {AttemptOutcome.RUNNING, AttemptOutcome.SUCCEEDED}


@dataclass(frozen=True)
class JobRow:
    """One job of the list."""

    job: Job
    state: str
    state_word: str
    template: str
    stage: Stage | None
    code: str
    seconds: float | None


@dataclass(frozen=True)
class StageLine:
    """One stage of the timeline; ``attempts`` are those that ended neither well nor with the job's own error."""

    stage: Stage
    title: str
    state_word: str
    seconds: float | None
    progress: Progress | None
    attempts: Sequence[tuple[Attempt, str, Failure | None]]


def job_row(job: Job, language: Language, templates: Mapping[str, Template]) -> JobRow:
    """One job as a row."""
    state, word = job_state(job, language)
    failure = job.failure
    return JobRow(
        job=job,
        state=state,
        state_word=word,
        template=template_title(job.request.template, language, templates),
        stage=job.current_stage,
        code=failure.code.value if failure and job.state is JobState.FAILED else "",
        seconds=job_seconds(job),
    )


def job_state(job: Job, language: Language) -> tuple[str, str]:
    """A job's state and its word; a running one that was asked to stop says so."""
    if job.cancel_requested and not job.finished:
        return "cancelling", text(language, "cancelling")
    return job.state.value, state_word(language, job.state.value)


def template_title(name: str, language: Language, templates: Mapping[str, Template]) -> str:
    """A template's title; its name where it is not known any more."""
    template = templates.get(name)
    if template is None:
        return name
    return template.title_zh if language is Language.ZH else template.title_en


def stage_lines(job: Job, language: Language, now: datetime | None = None) -> list[StageLine]:
    """The timeline."""
    return [
        StageLine(
            stage=stage,
            title=text(language, f"stage.{stage.name.value}"),
            state_word=state_word(language, stage.state.value),
            seconds=stage_seconds(stage, now),
            progress=stage.progress if stage.state is StageState.RUNNING else None,
            attempts=[
                (one, state_word(language, one.outcome.value), one.failure)
                for one in stage.attempts
                if one.outcome not in _QUIET and not (stage.state is StageState.FAILED and one is stage.attempts[-1])
            ],
        )
        for stage in job.stages
    ]


def kind_group(kind: EventKind) -> str:
    """Under which choice of the log's filter a kind falls."""
    return kind.value if kind in LOG_KINDS else OTHER_KINDS


def shown_events(events: Iterable[Event], groups: frozenset[str]) -> list[Event]:
    """Entries of the chosen groups. Progress is shown at the stages, not in the log."""
    return [event for event in events if event.kind is not EventKind.PROGRESS and kind_group(event.kind) in groups]

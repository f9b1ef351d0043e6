"""Jobs as the pages show them: rows, stages and log lines with every word chosen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from api_client.contract.errors import Failure
from api_client.contract.events import EventKind
from api_client.contract.job import Attempt, AttemptOutcome, Job, JobState, Progress, Stage, StageState
from api_client.contract.outputs import location_name, named_run
from api_client.contract.templates import Template
from api_client.words.language import Language
from api_client.words.states import state_word

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
    run: str
    model: str
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
    failure = job.failure
    return JobRow(
        job=job,
        state=job.shown_state,
        state_word=state_word(language, job.shown_state),
        run=named_run(job.request),
        model=location_name(job.request.base_model or ""),
        template=template_title(job.request.template, language, templates),
        stage=job.current_stage,
        code=failure.code.value if failure and job.state is JobState.FAILED else "",
        seconds=job.seconds(),
    )


def template_title(name: str, language: Language, templates: Mapping[str, Template]) -> str:
    """A template's title; its name where it is not known any more."""
    template = templates.get(name)
    if template is None:
        return name
    return language.choose(template.title_en, template.title_zh)


def stage_lines(job: Job, language: Language, now: datetime | None = None) -> list[StageLine]:
    """The timeline."""
    return [
        StageLine(
            stage=stage,
            title=stage.name.spec.title(language),
            state_word=state_word(language, stage.state.value),
            seconds=stage.seconds(now),
            progress=stage.progress if stage.state is StageState.RUNNING else None,
            attempts=[
                (attempt, state_word(language, attempt.outcome.value), attempt.failure)
                for attempt in stage.attempts
                if attempt.outcome not in _QUIET
                and not (stage.state is StageState.FAILED and attempt is stage.attempts[-1])
            ],
        )
        for stage in job.stages
    ]


def kind_group(kind: EventKind) -> str:
    """Under which choice of the log's filter a kind falls."""
    return kind.value if kind in LOG_KINDS else OTHER_KINDS

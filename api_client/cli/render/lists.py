"""Jobs, templates, quant types, checkpoints, workers and queues as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import RenderableType
from rich.text import Text

from api_client.cli.output import Output
from api_client.cli.render.states import attempt_name, stage_name, state_text
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.contract.fleet import Change, LabelLimit, Pause, QueueInfo, WorkerInfo
from api_client.contract.job import Job, JobState
from api_client.contract.outputs import location_name, named_run
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.templates import SWITCHES, Template
from api_client.runs.checkpoints import CheckpointList
from api_client.words.formatting import (
    format_age,
    format_duration,
    format_score,
    format_size,
    format_switch,
    format_time,
    one_line,
)
from api_client.words.states import state_word

MAX_SCORE_COLUMNS = 4
MAX_CELL = 24
"""With an id and a state beside it, it fits into 60 columns."""


def jobs_table(output: Output, jobs: Sequence[Job], width: int, now: datetime | None = None) -> RenderableType:
    """One line per job, newest first."""
    seconds = [job.seconds(now) for job in jobs]
    return fit_table(
        [
            Column(output.text("job"), [job.id for job in jobs], ALWAYS),
            Column(output.text("state"), [state_text(output.language, job.shown_state) for job in jobs], ALWAYS),
            Column(output.text("run"), [_short(named_run(job.request)) for job in jobs], 8),
            Column(output.text("stage"), [_where(output, job) for job in jobs], 7),
            Column(output.text("age"), [format_age(job.created_at, now) for job in jobs], 6, right=True),
            Column(output.text("quant_types"), [_short(",".join(job.options.quant_types)) for job in jobs], 5),
            Column(output.text("base_model"), [_short(location_name(job.request.base_model or "")) for job in jobs], 5),
            Column(output.text("duration"), ["" if s is None else format_duration(s) for s in seconds], 4, right=True),
            Column(output.text("labels"), [_short(_labels(job)) for job in jobs], 4),
            Column(output.text("template"), [job.request.template for job in jobs], 3),
            Column(output.text("output_dir"), [job.request.output_dir or "" for job in jobs], 2),
        ],
        width,
    )


def _where(output: Output, job: Job) -> str:
    """The stage a job is at, how far it is, or the code of what ended it."""
    if job.state is JobState.FAILED and (failure := job.failure) is not None:
        return failure.code.value
    stage = job.current_stage
    if stage is None:
        return ""
    name = stage_name(output.language, stage.name)
    if job.waiting_for is not None:
        return f"{name}: {state_word(output.language, job.waiting_for.reason.value)}"
    return f"{name} {stage.progress.fraction:.0%}" if stage.progress else name


def _short(text: str) -> str:
    """The end of a long text, which tells more of a path or a name than its beginning."""
    return text if len(text) <= MAX_CELL else f"…{text[1 - MAX_CELL :]}"


def _labels(job: Job) -> str:
    return ",".join(f"{key}={value}" for key, value in job.request.labels.items())


def templates_table(output: Output, templates: Sequence[Template], width: int) -> RenderableType:
    """Templates with their switches; a locked one cannot be changed by a request."""
    choose = output.language.choose
    switches = [
        Column(name, [format_switch(getattr(template, name)) for template in templates], 7) for name in SWITCHES
    ]
    return fit_table(
        [
            Column(output.text("template"), [template.name for template in templates], ALWAYS),
            Column(output.text("title"), [choose(t.title_en, t.title_zh) for t in templates], 5),
            *switches,
            Column(output.text("quant_types"), [",".join(template.quant_types) for template in templates], 8),
            Column(output.text("description"), [choose(t.description_en, t.description_zh) for t in templates], 3),
        ],
        width,
    )


def quant_types_table(output: Output, types: Sequence[QuantType], width: int) -> RenderableType:
    """Quant types with what helps to choose among them; the recommended ones stand out."""
    choose = output.language.choose
    infos = [QUANT_TYPES[quant_type] for quant_type in types]
    names = [
        Text(f"{quant_type.value} *", style="bold") if info.recommended else Text(quant_type.value)
        for quant_type, info in zip(types, infos, strict=True)
    ]
    return fit_table(
        [
            Column(output.text("quant_type"), names, ALWAYS),
            Column(output.text("bits_per_weight"), [f"{info.bits_per_weight:.2f}" for info in infos], 7, right=True),
            Column(output.text("family"), [info.family for info in infos], 4),
            Column(output.text("imatrix"), [output.text("needs_matrix") if i.needs_imatrix else "" for i in infos], 6),
            Column(output.text("description"), [choose(i.description_en, i.description_zh) for i in infos], 5),
        ],
        width,
    )


def checkpoints_view(output: Output, listing: CheckpointList, width: int) -> Iterator[RenderableType]:
    """A run's checkpoints, which of them the words mean, or why there is none."""
    checkpoints = listing.checkpoints
    if checkpoints:
        metrics = sorted(
            {name for checkpoint in checkpoints for name in checkpoint.scores},
            key=lambda name: (name != listing.metric, name),
        )
        words = {listing.latest: [output.text("latest")]}
        words.setdefault(listing.best, []).append(output.text("best"))
        words.setdefault(listing.before_early_stopping, []).append(output.text("before_stop"))
        yield fit_table(
            [
                Column(output.text("checkpoint"), [checkpoint.name for checkpoint in checkpoints], ALWAYS),
                Column(
                    output.text("kind"),
                    [state_text(output.language, checkpoint.kind.value) for checkpoint in checkpoints],
                    7,
                ),
                Column(
                    output.text("weights"),
                    [format_size(checkpoint.weights_bytes) for checkpoint in checkpoints],
                    5,
                    right=True,
                ),
                Column(
                    output.text("size"),
                    [format_size(checkpoint.size_bytes) for checkpoint in checkpoints],
                    2,
                    right=True,
                ),
                Column(output.text("saved"), [format_time(checkpoint.time) for checkpoint in checkpoints], 3),
                *(
                    Column(
                        name,
                        [
                            format_score(checkpoint.scores[name]) if name in checkpoint.scores else ""
                            for checkpoint in checkpoints
                        ],
                        6 if name == listing.metric else 4,
                        right=True,
                    )
                    for name in metrics[:MAX_SCORE_COLUMNS]
                ),
                Column("", [", ".join(words.get(checkpoint.name, [])) for checkpoint in checkpoints], 8),
                Column("", [checkpoint.problem or "" for checkpoint in checkpoints], 8),
            ],
            width,
        )
    if listing.explanation:
        yield Text(one_line(listing.explanation), style="yellow")


def _standing(output: Output, queue: QueueInfo) -> str:
    """Why a queue does not move."""
    if queue.paused:
        return output.text("paused")
    return "" if queue.waiting_for is None else state_word(output.language, queue.waiting_for.value)


def limits_table(output: Output, limits: Sequence[LabelLimit], width: int) -> RenderableType:
    """Caps by label: how many at once, where that was set, how many wait for a place."""
    if not limits:
        return Text(output.text("no_limits"))
    places = [output.text("set_here" if limit.set_here else "set_by_workers") for limit in limits]
    return fit_table(
        [
            Column(output.text("labels"), [one_line(limit.name) for limit in limits], ALWAYS),
            Column(
                output.text("at_once"),
                ["-" if limit.limit is None else str(limit.limit) for limit in limits],
                ALWAYS,
                right=True,
            ),
            Column(output.text("jobs_waiting"), [str(limit.waiting) for limit in limits], 6, right=True),
            Column("", places, 4),
        ],
        width,
    )


def changes_table(output: Output, changes: Sequence[Change], width: int, now: datetime | None = None) -> RenderableType:
    """Who changed what, newest first."""
    return fit_table(
        [
            Column(output.text("age"), [format_age(change.at, now) for change in changes], ALWAYS, right=True),
            Column(output.text("who"), [one_line(change.by) for change in changes], 6),
            Column("", [f"{change.action} {change.name} {change.value}".rstrip() for change in changes], ALWAYS),
        ],
        width,
    )


def pauses_table(output: Output, pauses: Sequence[Pause], width: int, now: datetime | None = None) -> RenderableType:
    """What is paused, since when and by whom."""
    return fit_table(
        [
            Column(output.text("paused"), [pause.name for pause in pauses], ALWAYS),
            Column(output.text("age"), [format_age(pause.at, now) for pause in pauses], 6, right=True),
            Column(output.text("who"), [one_line(pause.by) for pause in pauses], 4),
        ],
        width,
    )


def _running(output: Output, worker: WorkerInfo) -> str:
    return ", ".join(attempt_name(output.language, attempt) for attempt in worker.attempts)


def service_view(
    output: Output, workers: Sequence[WorkerInfo], queues: Sequence[QueueInfo], width: int, now: datetime | None = None
) -> Iterator[RenderableType]:
    """Workers and queues."""
    if workers:
        yield fit_table(
            [
                Column(output.text("worker"), [worker.name for worker in workers], ALWAYS),
                Column(
                    output.text("slots"), [f"{len(worker.running)}/{worker.slots}" for worker in workers], 7, right=True
                ),
                Column(output.text("running"), [_running(output, worker) for worker in workers], 6),
                Column("", [worker.device for worker in workers], 4),
                Column(
                    output.text("last_seen"), [format_age(w.last_heartbeat_at, now) for w in workers], 5, right=True
                ),
                Column("", [output.text("draining") if worker.draining else "" for worker in workers], 8),
            ],
            width,
        )
    else:
        yield Text(output.text("no_workers"), style="yellow")
    yield Text()
    yield fit_table(
        [
            Column(output.text("queue"), [queue.name for queue in queues], ALWAYS),
            Column(
                output.text("jobs_waiting"),
                [str(queue.due) for queue in queues],
                ALWAYS,
                right=True,
            ),
            Column(
                output.text("oldest"),
                ["" if queue.oldest_s is None else format_duration(queue.oldest_s) for queue in queues],
                6,
                right=True,
            ),
            Column(output.text("workers"), [str(queue.workers) for queue in queues], 5, right=True),
            Column("", [_standing(output, queue) for queue in queues], 4),
        ],
        width,
    )

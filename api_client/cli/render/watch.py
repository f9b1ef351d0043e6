"""The live view: stages with bars, the newest log lines, cut to the terminal's width and height. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from api_client.cli.output import Output
from api_client.cli.render.job import headline
from api_client.cli.render.log import log_line
from api_client.cli.render.states import mark, stage_name, state_text
from api_client.contract.events import Event
from api_client.contract.job import Job, JobState, Progress, Stage, StageName, StageState
from api_client.contract.waiting import WaitingFor
from api_client.words.formatting import format_amount, format_duration, format_progress, format_rate, one_line
from api_client.words.phrases import phrase

_BAR_MIN, _BAR_MAX, _BAR_PART = 8, 40, 0.28
_GAP = "  "
MAX_TAIL = 8


@dataclass(frozen=True)
class Frame:
    """What one picture is drawn from.

    Attributes:
        jobs: The jobs, in the order in which they were named.
        tail: Newest log entries, oldest first.
        now: Time of the picture.
        width: Cells a line may take.
        height: Lines there are.
        ascii_only: Whether the terminal has no other characters.
        note: A line to show beneath, e.g. that Redis is away.
    """

    jobs: Sequence[Job]
    tail: Sequence[Event]
    now: datetime
    width: int
    height: int
    ascii_only: bool = False
    note: str = ""


def watch_lines(output: Output, frame: Frame) -> list[Text]:
    """The picture: at most ``height`` lines, none wider than ``width``."""
    note = [Text(one_line(frame.note), style="yellow")] if frame.note and frame.height > 1 else []
    room = max(1, frame.height - len(note))
    lines = _one_job(output, frame, room) if len(frame.jobs) == 1 else _many_jobs(output, frame, room)
    tail_room = min(MAX_TAIL, room - len(lines) - 1)
    if frame.tail and tail_room > 0:
        lines.append(Text())
        several = len(frame.jobs) > 1
        lines += [
            _flat(log_line(event, job=event.job_id.rpartition("-")[2] if several else ""))
            for event in frame.tail[-tail_room:]
        ]
    lines = [*lines[:room], *note]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
        line.truncate(frame.width, overflow="ellipsis")
    return lines


def _one_job(output: Output, frame: Frame, room: int) -> list[Text]:
    job = frame.jobs[0]
    stages = [stage_line(output, stage, frame) for stage in job.stages]
    why = [_why(output, job.waiting_for)] if job.waiting_for is not None else []
    if len(stages) + len(why) < room:
        return [headline(output, job, frame.now), *why, *stages]
    at = _position(job)
    if room == 1:
        return [stages[at]]
    # too low for all: the stages around the one that runs
    first = min(max(0, at - (room - 1) // 2), len(stages) - (room - 1))
    return [headline(output, job, frame.now), *stages[first : first + room - 1]]


def _why(output: Output, waiting: WaitingFor) -> Text:
    """Why a job waits, on one line."""
    told = waiting.told(output.language)
    return Text(f"  {output.text('waits')}: {told.why}; {output.text('freed')}: {told.frees}", style="yellow")


def _position(job: Job) -> int:
    """Index of the stage that matters now: the one that runs, failed, or comes next."""
    for index, stage in enumerate(job.stages):
        if stage.state is not StageState.SUCCEEDED:
            return index
    return len(job.stages) - 1


def _many_jobs(output: Output, frame: Frame, room: int) -> list[Text]:
    order = {JobState.RUNNING: 0, JobState.QUEUED: 1}
    shown = sorted(frame.jobs, key=lambda job: order.get(job.state, 2)) if len(frame.jobs) > room else frame.jobs
    lines = [_job_line(output, job, frame) for job in shown[:room]]
    if len(frame.jobs) > room:
        lines[-1] = Text(f"... {len(frame.jobs) - room + 1} more", style="dim")
    return lines


def _job_line(output: Output, job: Job, frame: Frame) -> Text:
    line = mark(job.state.value, ascii_only=frame.ascii_only) + Text(f" {job.id}  ")
    stage = job.current_stage
    if job.finished or stage is None:
        line.append_text(state_text(output.language, job.shown_state))
        seconds = job.seconds(frame.now)
        if seconds is not None:
            line.append(f"{_GAP}{format_duration(seconds)}", style="dim")
        if (failure := job.failure) is not None:
            line.append(f"{_GAP}{failure.code.value}", style="red")
        return line
    line.append(_padded_name(output, stage) + " ")
    line.append_text(_activity(output, stage, frame, frame.width - line.cell_len))
    if job.waiting_for is not None:
        line.append(f"{_GAP}{job.waiting_for.told(output.language).why}", style="yellow")
    return line


def stage_line(output: Output, stage: Stage, frame: Frame) -> Text:
    """One stage: mark, name, then a bar while it runs, its duration once it has ended."""
    line = mark(stage.state.value, ascii_only=frame.ascii_only)
    line.append(f" {_padded_name(output, stage)} ", style="dim" if stage.state is StageState.PENDING else "")
    line.append_text(_activity(output, stage, frame, frame.width - line.cell_len))
    return line


def _padded_name(output: Output, stage: Stage) -> str:
    """A stage's name, with blanks up to the cells of the longest one; a Chinese character takes two."""
    width = max(cell_len(stage_name(output.language, name)) for name in StageName)
    return set_cell_size(stage_name(output.language, stage.name), width)


def _activity(output: Output, stage: Stage, frame: Frame, width: int) -> Text:
    seconds = stage.seconds(frame.now)
    elapsed = "" if seconds is None else format_duration(seconds)
    if stage.state is StageState.RUNNING:
        again = f"#{stage.attempt}" if stage.attempt > 1 else ""
        if stage.progress is None:
            return Text(f"{elapsed}{_GAP}{again}".rstrip(), style="cyan")
        return _running(output, stage.progress, again, frame, width)
    if stage.state is StageState.PENDING:
        return Text()
    if stage.state is StageState.SUCCEEDED:
        amount = stage.progress and format_amount(stage.progress.total, stage.progress.unit)
        return Text.assemble((f"{elapsed:>8}", "green"), (f"{_GAP}{amount}" if amount else "", "dim"))
    line = state_text(output.language, stage.state.value)
    if (failure := stage.failure) is not None:
        line.append(f"{_GAP}{failure.code.value}", style="red")
    return line


def _running(output: Output, progress: Progress, again: str, frame: Frame, width: int) -> Text:
    """A bar and as many facts as fit, the most wanted first."""
    percent = f"{progress.fraction:4.0%}"
    if width < _BAR_MIN + 1 + len(percent):
        return Text(percent.strip(), style="cyan")
    left = progress.remaining_s
    facts = [
        again,
        phrase(output.language, "left", time=format_duration(left)) if left is not None else "",
        format_progress(progress.done, progress.total, progress.unit),
        format_rate(progress.rate, progress.unit) if progress.rate else "",
        one_line(progress.detail),
    ]
    # the bar's width depends on the terminal alone, or it would jump with every change of the words
    bar_width = max(_BAR_MIN, min(_BAR_MAX, int(width * _BAR_PART)))
    words, room = Text(percent, style="cyan"), width - bar_width - 1
    for fact in filter(None, facts):
        if words.cell_len + len(_GAP) + Text(fact).cell_len > room:
            break
        words.append(_GAP + fact)
    return bar(progress.fraction, bar_width, frame.ascii_only) + Text(" ") + words


def bar(fraction: float, width: int, ascii_only: bool = False) -> Text:
    """A bar of ``width`` cells, filled to ``fraction``."""
    full = round(min(1.0, max(0.0, fraction)) * width)
    done, rest = ("#", "-") if ascii_only else ("━", "─")
    return Text.assemble((done * full, "cyan"), (rest * (width - full), "dim"))


def _flat(line: Text) -> Text:
    """A log entry's first line only."""
    return line.split("\n")[0] if "\n" in line.plain else line

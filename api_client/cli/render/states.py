"""Marks and colours of states, the same in every view."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.text import Text

from api_client.cli.language import phrase, state_word
from api_client.job import Job, Stage, StageState
from api_client.language import Language

STYLES = {
    "queued": "blue",
    "pending": "dim",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "retried": "yellow",
    "rescued": "yellow",
    "crashed": "red",
    "handed_back": "yellow",
    "incomplete": "yellow",
}
LEVEL_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}
MARKS = {
    "pending": ("·", "."),
    "queued": ("○", "o"),
    "running": ("●", "*"),
    "succeeded": ("✔", "+"),
    "failed": ("✘", "x"),
    "cancelled": ("■", "-"),
}


def mark(state: str, *, ascii_only: bool = False) -> Text:
    """One character for a state."""
    return Text(MARKS[state][ascii_only], style=STYLES[state])


def state_text(language: Language, state: str) -> Text:
    """A state as a coloured word."""
    return Text(state_word(language, state), style=STYLES.get(state, ""))


def job_state(language: Language, job: Job) -> Text:
    """A job's state; a running one that was asked to stop says so."""
    if job.cancel_requested and not job.finished:
        return Text(phrase(language, "cancelling"), style=STYLES["cancelled"])
    return state_text(language, job.state.value)


def job_seconds(job: Job, now: datetime | None = None) -> float | None:
    """Seconds from a job's start to its end, or to now."""
    if job.started_at is None:
        return None
    return ((job.finished_at or now or datetime.now(UTC)) - job.started_at).total_seconds()


def stage_seconds(stage: Stage, now: datetime | None = None) -> float | None:
    """Seconds from a stage's first start to its end, or to now while it runs."""
    if stage.duration_s is not None or stage.started_at is None or stage.state is not StageState.RUNNING:
        return stage.duration_s
    return ((now or datetime.now(UTC)) - stage.started_at).total_seconds()

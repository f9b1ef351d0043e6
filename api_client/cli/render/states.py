"""Marks and colours of states and names of stages, the same in every view."""

from __future__ import annotations

from rich.text import Text

from api_client.contract.fleet import RunningAttempt
from api_client.contract.job import StageName
from api_client.words.formatting import one_line
from api_client.words.language import Language
from api_client.words.states import state_word

STYLES = {
    "queued": "blue",
    "pending": "dim",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "cancelling": "yellow",
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


def stage_name(language: Language, stage: StageName) -> str:
    """A stage's name: in English as ``--from-stage`` takes it, in Chinese its title."""
    return language.choose(stage.value, stage.spec.title(language))


def attempt_name(language: Language, attempt: RunningAttempt) -> str:
    """Job, stage and number of an attempt under way; a stage that only a newer version knows by its own name."""
    known = attempt.stage in list(StageName)
    stage = stage_name(language, StageName(attempt.stage)) if known else one_line(attempt.stage)
    return ":".join(filter(None, (attempt.job_id, stage, attempt.attempt)))

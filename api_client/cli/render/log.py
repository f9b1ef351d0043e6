"""One entry of a job's log as one line, or several where the message has line breaks."""

from __future__ import annotations

from rich.text import Text

from api_client.cli.render.states import LEVEL_STYLES
from api_client.contract.events import Event, EventKind
from api_client.words.formatting import clean, format_progress, format_rate, one_line

_KIND_WIDTH = max(len(kind.value) for kind in EventKind)


_TOLD_LEVELS = ("warning", "error")
LEVELS = ("debug", "info", "warning", "error")
"""From the least to the most serious."""


def at_least(event: Event, level: str) -> bool:
    """Whether an entry is as serious as a level, or more."""
    return LEVELS.index(event.level) >= LEVELS.index(level) if event.level in LEVELS else True


def log_line(event: Event, *, job: str = "") -> Text:
    """Time, kind and message, with ``job`` before them where there are several; a level above info is said."""
    line = Text(event.time.astimezone().strftime("%H:%M:%S "), style="dim")
    if job:
        line.append(f"{job} ", style="dim")
    line.append(f"{event.kind.value:<{_KIND_WIDTH}} ", style="cyan" if event.kind is not EventKind.JOB else "blue")
    head = len(line)
    message = progress_words(event) if event.kind is EventKind.PROGRESS else clean(event.message)
    if event.kind is EventKind.JOB and event.stage is not None:
        message = f"{event.stage.value}: {message}"
    if event.level in _TOLD_LEVELS:
        message = f"{event.level.upper()} {message}"
    line.append(message.replace("\n", "\n" + " " * head), style=LEVEL_STYLES[event.level])
    return line


def progress_fraction(event: Event) -> float | None:
    """Part done of a progress event; ``None`` if it does not say."""
    done, total = event.fields.get("done"), event.fields.get("total")
    if not isinstance(done, int | float) or not isinstance(total, int | float) or total <= 0:
        return None
    return min(1.0, done / total)


def progress_words(event: Event) -> str:
    """A progress event in words: ``convert 61%  1.2 of 2.0 GB  410.0 MB/s``."""
    fraction = progress_fraction(event)
    stage = event.stage.value if event.stage else ""
    if fraction is None:
        return f"{stage} {one_line(event.message)}".strip()
    unit = str(event.fields.get("unit", ""))
    parts = [f"{stage} {fraction:.0%}", format_progress(event.fields["done"], event.fields["total"], unit)]
    rate = event.fields.get("rate")
    if isinstance(rate, int | float):
        parts.append(format_rate(rate, unit))
    return "  ".join(parts)

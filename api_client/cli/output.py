"""Where output goes: results to standard output, everything else to standard error, JSON where asked for."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from api_client.words.formatting import clean
from api_client.words.language import Language, language_of
from api_client.words.phrases import phrase

PIPE_WIDTH = 240
"""Line length where no terminal says otherwise, so that tables in a pipe are not cut."""


@dataclass(frozen=True)
class Output:
    """A command's way to the person or program that called it.

    Attributes:
        as_json: Whether results are JSON documents.
        language: Language of phrases.
        results: Console on standard output.
        notes: Console on standard error.
    """

    as_json: bool
    language: Language
    results: Console
    notes: Console

    @property
    def live(self) -> bool:
        """Whether progress can be drawn in place."""
        return not self.as_json and self.notes.is_terminal and not self.notes.is_dumb_terminal

    def text(self, key: str, **values: object) -> str:
        """A phrase in the language of the caller."""
        return phrase(self.language, key, **values)

    def document(self, data: Any) -> None:
        """Write one JSON document on one line of standard output."""
        stream = self.results.file
        ascii_only = "utf" not in (getattr(stream, "encoding", None) or "utf-8").lower()
        text = json.dumps(plain(data), ensure_ascii=ascii_only, allow_nan=False)
        # a lone surrogate, from a file name that is no UTF-8, can only be written as an escape
        stream.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        stream.flush()

    def say(self, text: str, style: str = "") -> None:
        """Write a line of foreign or own text to standard error."""
        self.notes.print(Text(clean(text), style=style), soft_wrap=True)

    def show(self, *renderables: Any) -> None:
        """Write results for people to standard output."""
        for renderable in renderables:
            self.results.print(renderable)

    def show_whole(self, *lines: Any) -> None:
        """Write lines to standard output that no terminal's width cuts or breaks: paths and commands to copy."""
        for line in lines:
            self.results.print(line, soft_wrap=True)


def plain(data: Any) -> Any:
    """Models and their collections as JSON values; numbers that JSON does not have become ``None``."""
    if isinstance(data, BaseModel):
        return plain(data.model_dump(mode="json"))
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return [plain(item) for item in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def standard_output(*, as_json: bool) -> Output:
    """The output of this process."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return Output(as_json, language_of(os.environ), make_console(sys.stdout), make_console(sys.stderr))


def _nowhere() -> TextIO:
    """A stand-in for a stream that the caller closed (``>&-``); without it the next socket would get its number."""
    return Path(os.devnull).open("w", encoding="utf-8")


def make_console(stream: TextIO, width: int | None = None) -> Console:
    """A console that takes text as it is: no markup, no emoji codes, no highlighting."""
    columns = os.environ.get("COLUMNS", "")
    if width is None and not (columns.isdigit() and int(columns)):
        # rich would take a width of zero, which some shells and supervisors set, at its word
        width = (shutil.get_terminal_size().columns if columns else None) if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)

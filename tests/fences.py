"""The fenced blocks of the documentation, and the commands in them."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    file: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Shown:
    """A command after a ``$``, and the output that the page shows for it."""

    place: str
    text: str
    output: str

    def __str__(self) -> str:
        return f"{self.place} {self.text}"

    @property
    def words(self) -> list[str]:
        """The command without its comment and the settings before it."""
        words = shlex.split(self.text, comments=True)
        return [*itertools.dropwhile(lambda word: re.match(r"[A-Z_0-9]+=", word), words)]

    @property
    def program(self) -> str:
        """Name of the program, without its directory."""
        return self.words[0].removeprefix(".venv/bin/")


def pages() -> list[Path]:
    """The documentation."""
    return [
        *sorted(ROOT.glob("README*.md")),
        *sorted((ROOT / "docs").glob("**/*.md")),
        *sorted(ROOT.glob("deploy/**/*.md")),
    ]


def blocks() -> list[Block]:
    """All of them."""
    found = []
    for page in pages():
        text = page.read_text("utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, match["language"], match["text"]))
    return found


def shown() -> Iterator[Shown]:
    """Every command of the ``console`` and ``sh`` blocks, in order."""
    for block in blocks():
        if block.language in ("sh", "bash"):
            lines = block.text.replace("\\\n", " ").splitlines()
            yield from (Shown(str(block), line.strip(), "") for line in lines if line.strip(" ") and line[0] != "#")
        elif block.language == "console":
            text = block.text.replace("\\\n", " ")
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield Shown(str(block), command.strip(), output.rstrip("\n"))

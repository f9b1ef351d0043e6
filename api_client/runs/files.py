"""The files of a training run, wherever they lie. ``checkpoints`` reads runs through this one interface."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

ADAPTER_SUBDIRECTORIES = ("", "adapter_model", "adapter", "default", "model")
"""Where inside a checkpoint an adapter may lie; the first that holds one counts."""


@dataclass(frozen=True, slots=True)
class RunFile:
    """One file: size in bytes and time of the last change."""

    size_bytes: int
    time: datetime


class RunFiles(Protocol):
    """A run's directory, local or remote."""

    @property
    def location(self) -> str:
        """Path or URL, without a slash at the end."""

    def files(self) -> Mapping[str, RunFile] | None:
        """Files by their path relative to the run, at most three levels deep; ``None`` if there is no such directory.

        Subdirectories stand in it, too, with a slash at the end and size 0.
        """

    def read(self, name: str, start: int, length: int) -> bytes:
        """A part of a file; shorter at its end. ``OSError`` if it cannot be read."""


class LocalRunFiles:
    """A run in a local directory.

    Args:
        directory: The run's output directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def location(self) -> str:
        """The directory."""
        return str(self._directory)

    def files(self) -> dict[str, RunFile] | None:
        """The run's own files, those of its subdirectories, and of the adapter directories inside them.

        Other directories inside subdirectories are named only.
        """
        if not self._directory.is_dir():
            return None
        return dict(_walk(self._directory, "", 0))

    def read(self, name: str, start: int, length: int) -> bytes:
        """Read a part of a file."""
        with (self._directory / name).open("rb") as file:
            file.seek(start)
            return file.read(length)


def _walk(directory: Path, prefix: str, depth: int) -> Iterator[tuple[str, RunFile]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:  # vanished or closed to us: the same as empty, for a list
        return
    for entry in entries:
        try:
            if entry.is_file():
                stat = entry.stat()
                yield prefix + entry.name, RunFile(stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))
            elif entry.is_dir() and depth < 2:
                changed = datetime.fromtimestamp(entry.stat().st_mtime, UTC)
                yield f"{prefix}{entry.name}/", RunFile(0, changed)
                if depth == 0 or entry.name in ADAPTER_SUBDIRECTORIES:
                    yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)
        except OSError:
            continue

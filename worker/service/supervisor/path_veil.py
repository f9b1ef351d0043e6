"""Paths of this machine, taken out of what is kept beside a job's outputs.

The log in Redis names them: whoever runs the machine needs them. Beside the outputs others read. There the request's
own paths stay as they were given, and the others stand as what they are, such as ``<scratch>/overlay.safetensors``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api_client.contract.job import Job
from config.settings import Settings
from worker.stages.prepared import Prepared

_SOURCES = Path(__file__).resolve().parents[2]


class PathVeil:
    """Replaces paths in texts."""

    def __init__(self, hidden: Mapping[str, Path], given: frozenset[str]) -> None:
        """Make one.

        Args:
            hidden: What each path is, and the path; one that leads nowhere in particular (``/``) is left alone.
            given: Paths that stay, also where they lie below a hidden one, or above it.
        """
        names = {str(path): f"<{name}>" for name, path in hidden.items() if len(path.parts) > 1}
        self._names = {path: name for path, name in names.items() if path not in given} | {path: path for path in given}
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(f"{re.escape(path)}(?![\\w.-])" for path in longest_first) or "(?!)")

    @classmethod
    def of_job(cls, job: Job, settings: Settings, scratch: Path) -> PathVeil:
        """For the log of a job whose stages are done."""
        prepared = next((Prepared.read(stage.facts) for stage in job.stages if stage.name is job.plan[0]), None)
        hidden = dict(_machine(settings)) | {"scratch": scratch} | (prepared.directories if prepared else {})
        given = frozenset(text.rstrip("/") for text in _texts(job.request.model_dump(mode="json")) if text[:1] == "/")
        return cls(hidden, given - {""})

    def __call__(self, value: Any) -> Any:
        """The same JSON value with every path replaced, in keys, too."""
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item) for item in value]
        return self._pattern.sub(lambda match: self._names[match[0]], value) if isinstance(value, str) else value


def _machine(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Directories of the installation."""
    yield "home", settings.home
    yield "kernels", settings.kernels_dir
    yield "python", Path(sys.prefix)
    yield "trainpack", _SOURCES
    if settings.scratch_dir is not None:
        yield "scratch", settings.scratch_dir
    if settings.llama_cpp_dir is not None:
        yield "llama.cpp", settings.llama_cpp_dir


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value

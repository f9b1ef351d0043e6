"""The training runs below some directories: which there are, how each ended, and what of it is packaged already.

Bounded in time and number: a directory that does not answer in time is told of, and what was seen of it by then is in
the list. Names only are read of all runs, and more of the newest.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from api_client.contract.outputs import MANIFEST
from api_client.runs.base_models import named_base_models
from api_client.runs.checkpoint_names import is_checkpoint_name
from api_client.runs.checkpoints import TRAINER_STATE, CheckpointList, list_checkpoints
from api_client.runs.files import LocalRunFiles
from api_client.runs.kinds import ADAPTER_CONFIG, CheckpointKind
from api_client.runs.pick import PACKAGES

MOST_RUNS: Final = 20_000
"""Runs that are looked for below one directory."""
MOST_SHOWN: Final = 200
"""Runs, the newest, that are read and told of."""
DEPTH: Final = 3
"""How deep runs lie at most: ``ROOT/project/user/run``."""
LOOK_S: Final = 6.0
"""How long all of it may take."""
_ACTIVE: Final = timedelta(minutes=10)
_MOST_CHARACTERS: Final = 400


class FoundRun(BaseModel):
    """One run. What is not known is empty."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    changed: datetime
    """Last change of the directory itself."""
    status: Literal["running", "ended", "no_weights", ""] = ""
    """``running``: something in it changed within ten minutes; empty: not looked at."""
    finetuning: Literal["lora", "full", ""] = ""
    base_model: str = ""
    """As the newest adapter names it."""
    checkpoints: int = 0
    best: str = ""
    metric: str = ""
    score: float | None = None
    packaged: tuple[str, ...] = ()
    """Checkpoints with a package below the run."""


class RunsList(BaseModel):
    """The runs, newest first, and what is missing of them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    runs: tuple[FoundRun, ...] = ()
    total: int = 0
    """Runs that match, told of or not."""
    roots: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Roots that do not exist, are closed to the worker, or did not answer in time; what follows is a part of them."""


@dataclass
class _Walk:
    """One root, walked by a thread of its own; others read what it has so far."""

    root: Path
    seen: list[tuple[float, Path]] = field(default_factory=list)
    failed: bool = False
    thread: threading.Thread | None = None

    def begin(self) -> None:
        self.thread = threading.Thread(target=self._run, name=f"runs-{self.root.name}", daemon=True)
        self.thread.start()

    def ended_by(self, deadline: float) -> bool:
        assert self.thread is not None
        self.thread.join(max(0.0, deadline - time.monotonic()))
        return not self.thread.is_alive()

    def _run(self) -> None:
        try:
            if not self.root.is_dir():
                raise FileNotFoundError(self.root)
            for changed, path in _runs_below(self.root, DEPTH):
                self.seen.append((changed, path))
                if len(self.seen) >= MOST_RUNS:
                    break
        except OSError:
            self.failed = True


def list_runs(roots: Sequence[Path], search: str = "", look_s: float = LOOK_S) -> RunsList:
    """List the runs below some directories.

    Args:
        roots: The directories.
        search: A part of the run's path, whatever its case; others are left out.
        look_s: How long it may take.
    """
    started = time.monotonic()
    walks = [_Walk(root) for root in roots]
    for walk in walks:
        walk.begin()
    # each wait leaves time for reading the runs that were seen
    missing = [str(walk.root) for walk in walks if not walk.ended_by(started + look_s / 2) or walk.failed]
    wanted = search.casefold()
    seen = [pair for walk in walks for pair in [*walk.seen] if wanted in str(pair[1]).casefold()]
    newest = sorted(seen, key=lambda pair: pair[0], reverse=True)[:MOST_SHOWN]
    told = _read_all(newest, started + look_s)
    return RunsList(runs=tuple(told), total=len(seen), roots=tuple(str(root) for root in roots), missing=tuple(missing))


def _runs_below(directory: Path, depth: int) -> Iterator[tuple[float, Path]]:
    """Directories that hold checkpoints, an adapter or a trainer's state; what lies below one is no other run."""
    with os.scandir(directory) as entries:
        below = sorted((entry for entry in entries if _is_directory(entry)), key=lambda entry: entry.name)
    for entry in below:
        path = Path(entry.path)
        with suppress(OSError):
            if _is_run(path):
                yield entry.stat().st_mtime, path
            elif depth > 1:
                yield from _runs_below(path, depth - 1)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:
        return False


def _is_run(path: Path) -> bool:
    with os.scandir(path) as entries:
        return any(is_checkpoint_name(entry.name) or entry.name in (TRAINER_STATE, ADAPTER_CONFIG) for entry in entries)


def _read_all(newest: Sequence[tuple[float, Path]], deadline: float) -> list[FoundRun]:
    """More of each run while there is time; one that hangs leaves those after it as names."""
    told = [
        FoundRun(path=str(path)[:_MOST_CHARACTERS], changed=datetime.fromtimestamp(changed, UTC))
        for changed, path in newest
        if _is_text(path)
    ]

    def read() -> None:
        for number, known in enumerate(told):
            if time.monotonic() > deadline:
                return
            with suppress(OSError, ValueError):
                told[number] = _read(known)

    thread = threading.Thread(target=read, name="runs-read", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    return [*told]


def _is_text(path: Path) -> bool:
    """A name that is no UTF-8 can be typed by nobody, and stands in no answer."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(known: FoundRun) -> FoundRun:
    directory = Path(known.path)
    files = LocalRunFiles(directory)
    listing = list_checkpoints(files)
    usable = [checkpoint for checkpoint in listing.checkpoints if checkpoint.usable]
    adapters = [checkpoint.name for checkpoint in usable if checkpoint.kind is CheckpointKind.ADAPTER]
    named = next(iter(named_base_models(files, adapters[-1])), None) if adapters else None
    changed = max([known.changed, *(checkpoint.time for checkpoint in listing.checkpoints)])
    best = listing.find(listing.best) if listing.best else None
    return known.model_copy(
        update={
            "changed": changed,
            "status": _status(listing, changed, usable=bool(usable)),
            "finetuning": "lora" if adapters else "full" if usable or listing.empty_reason == "not_lora" else "",
            "base_model": (named.location if named else "")[:_MOST_CHARACTERS],
            "checkpoints": len(listing.checkpoints),
            "best": listing.best or "",
            "metric": (listing.metric or "")[:_MOST_CHARACTERS],
            "score": best.scores.get(listing.metric) if best and listing.metric else None,
            "packaged": tuple(_packaged(directory)),
        }
    )


def _status(listing: CheckpointList, changed: datetime, *, usable: bool) -> str:
    if datetime.now(UTC) - changed < _ACTIVE:
        return "running"
    return "ended" if usable or listing.empty_reason == "not_lora" else "no_weights"


def _packaged(directory: Path) -> list[str]:
    with suppress(OSError), os.scandir(directory / PACKAGES) as entries:
        names = [entry.name for entry in entries if _is_directory(entry)]
        return sorted(
            name[:_MOST_CHARACTERS] for name in names if (directory / PACKAGES / name / MANIFEST.recipe).exists()
        )
    return []

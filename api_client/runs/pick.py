"""What is meant by one place and nothing else: a run, one of its checkpoints, an adapter or a whole model.

Of a run it is the checkpoint that its scores call best, else the latest one. Names, sizes and headers only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.locations import CHECKPOINT_WORDS, is_remote
from api_client.runs.checkpoint_names import is_checkpoint_name
from api_client.runs.checkpoints import CheckpointList, choose_checkpoint, empty_error, list_checkpoints
from api_client.runs.files import ADAPTER_SUBDIRECTORIES, RunFiles
from api_client.runs.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointKind, classify, remedy_of
from api_client.words.suggestions import did_you_mean, nearest

OpenRun = Callable[[str], RunFiles]
PACKAGES = "package"
"""Directory below a run in which its packages lie, one directory for each checkpoint."""


class Why(StrEnum):
    """Why it is this one."""

    NAMED = "named"
    ONLY = "only"
    BEST = "best"
    LATEST = "latest"
    ITSELF = "itself"
    """The place is a checkpoint, an adapter or a model, not a run."""


@dataclass(frozen=True)
class Picked:
    """What is to be packaged.

    Attributes:
        run: Path or URL of the run that it belongs to; of the place itself where it belongs to none.
        location: Path or URL of the checkpoint, adapter or model.
        kind: An adapter, or full weights.
        why: Why it is this one.
        listing: The run's checkpoints; empty where the place is none.
    """

    run: str
    location: str
    kind: CheckpointKind
    why: Why
    listing: CheckpointList

    @property
    def name(self) -> str:
        """Last part of its location."""
        return PurePosixPath(self.location).name

    @property
    def is_step(self) -> bool:
        """Whether it is one of several checkpoints of a training, not the end of it."""
        return self.run != self.location

    @property
    def output_dir(self) -> str:
        """Where its package goes if nobody says otherwise."""
        return f"{self.run}/{PACKAGES}/{self.name}" if self.is_step else f"{self.run}/{PACKAGES}"


def pick(place: str, open_run: OpenRun, reference: str | None = None) -> Picked:
    """Find out what a place means.

    Args:
        place: An absolute path, or a URL of object storage: of a run, ``RUN/latest``, ``RUN/best``, a checkpoint, the
            adapter's directory or file inside one, or of a model.
        open_run: The way to the files below a place.
        reference: ``latest``, ``best`` or the name of one of the run's checkpoints, where one is chosen.

    Raises:
        PackagingError: ``checkpoint_not_found`` or ``checkpoints_empty``, saying what there is; what reading raises.
    """
    place, reference = _cut(place.rstrip("/"), open_run, reference)
    listing = list_checkpoints(open_run(place))
    if listing.checkpoints:
        return _of_run(place, listing, reference)
    files = open_run(place).files()
    if files is None:
        raise _missing(place, open_run)
    kind, _, problem = classify(open_run(place), "", files)
    error = empty_error(listing)
    if kind is CheckpointKind.INCOMPLETE:
        assert error is not None, "a list without checkpoints says why"
        remedy = remedy_of(open_run(place), "", files, problem)
        raise error if problem == "no weights" else _unusable(place, problem, remedy)
    above, _, name = place.rpartition("/")
    return Picked(above if is_checkpoint_name(name) else place, place, kind, Why.ITSELF, listing)


def _cut(place: str, open_run: OpenRun, reference: str | None) -> tuple[str, str | None]:
    """A place without what stands for something inside or above it: a word, the adapter's file or directory."""
    above, _, name = place.rpartition("/")
    if name in CHECKPOINT_WORDS and above and open_run(place).files() is None:
        return above, reference or name
    if name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        return _cut(above, open_run, reference)
    inside = is_checkpoint_name(PurePosixPath(above).name)
    return (above if name in ADAPTER_SUBDIRECTORIES and name and inside else place), reference


def _of_run(run: str, listing: CheckpointList, reference: str | None) -> Picked:
    usable = [checkpoint for checkpoint in listing.checkpoints if checkpoint.usable]
    if reference is not None:
        why = Why(reference) if reference in CHECKPOINT_WORDS else Why.NAMED
    elif len(usable) == 1:
        why = Why.ONLY
    else:
        why = Why.BEST if listing.best else Why.LATEST
    chosen = choose_checkpoint(listing, reference or listing.best or "latest")
    return Picked(run, chosen.path, chosen.kind, why, listing)


def _unusable(place: str, problem: str | None, remedy: str | None) -> PackagingError:
    return PackagingError(
        ErrorCode.CHECKPOINT_NOT_FOUND,
        f"{place} cannot be packaged: {problem}",
        remedy=remedy,
        fields={"checkpoint": place},
    )


def _missing(place: str, open_run: OpenRun) -> PackagingError:
    """What to say of a checkpoint that a run does not have: which it has, or which neighbour was perhaps meant."""
    above, _, name = place.rpartition("/")
    listing = list_checkpoints(open_run(above)) if above else None
    if listing is not None and listing.checkpoints:
        choose_checkpoint(listing, name)
    meant = None if is_remote(place) else _neighbour(Path(place))
    return PackagingError(
        ErrorCode.CHECKPOINT_NOT_FOUND,
        f"{place} {'is a file' if not is_remote(place) and Path(place).exists() else 'does not exist'}"
        + did_you_mean(meant),
        remedy="Give a run's directory, one of its checkpoints, or a model's directory.",
        fields={"path": place, "suggestion": meant},
    )


def _neighbour(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return None
    meant = nearest(path.name, names)
    return str(path.parent / meant) if meant else None

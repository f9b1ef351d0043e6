"""The checkpoints of a training run: which there are, which is best, which one a reference means.

Reads file names, sizes, safetensors headers and ``trainer_state.json``; no weights and nothing heavy. The worker's
``prepare`` stage resolves references with the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.locations import CHECKPOINT_WORDS
from api_client.runs.checkpoint_names import is_checkpoint_name, step_of
from api_client.runs.files import ADAPTER_SUBDIRECTORIES, LocalRunFiles, RunFile, RunFiles
from api_client.runs.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointKind, classify, remedy_of, shards_of
from api_client.runs.trainer_state import DecidingMetric, TrainerState, deciding_metric, parse_trainer_state
from api_client.words.suggestions import did_you_mean, nearest

TRAINER_STATE = "trainer_state.json"
MAX_STATE_BYTES = 64 * 2**20
_SHOWN_NAMES = 8


class EmptyReason(StrEnum):
    """Why a run has no checkpoint to choose from."""

    DIRECTORY_MISSING = "directory_missing"
    NO_CHECKPOINTS = "no_checkpoints"
    NOT_LORA = "not_lora"
    ALL_INCOMPLETE = "all_incomplete"


class Checkpoint(BaseModel):
    """One ``checkpoint-*`` directory."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: str
    step: int | None
    time: datetime
    """Last change of its newest file."""
    kind: CheckpointKind
    size_bytes: int
    """Everything in the directory, optimizer state included."""
    weights_bytes: int
    """The weights alone."""
    scores: dict[str, float | None] = {}
    """Evaluation scores at its step; ``None`` for a value that is not finite."""
    problem: str | None = None
    remedy: str | None = None
    """What makes it usable, where that is known."""

    @property
    def usable(self) -> bool:
        """Whether it can be packaged."""
        return self.kind is not CheckpointKind.INCOMPLETE


class CheckpointList(BaseModel):
    """The checkpoints of a run, oldest first, with the ones that the words mean. Names, not paths."""

    model_config = ConfigDict(frozen=True)

    directory: str
    checkpoints: tuple[Checkpoint, ...] = ()
    latest: str | None = None
    """The usable one with the highest step."""
    best: str | None = None
    """The one the trainer recorded as best, else the best by ``metric`` among those that are there."""
    metric: str | None = None
    greater_is_better: bool | None = None
    best_recorded: bool = False
    """Whether the trainer itself recorded ``best``; otherwise it is worked out from the scores."""
    stopped_early_at: int | None = None
    """Step at which early stopping ended the run."""
    before_early_stopping: str | None = None
    """The newest one saved before the evaluation that ended the run."""
    empty_reason: EmptyReason | None = None
    runs: tuple[str, ...] = ()
    """Names of the runs below a directory that is none itself, newest first."""
    explanation: str | None = None
    """Why the list is empty, or why none can be packaged, as a sentence."""

    def find(self, name: str) -> Checkpoint | None:
        """Look one up by name."""
        return next((checkpoint for checkpoint in self.checkpoints if checkpoint.name == name), None)


def list_checkpoints(run_dir: str | Path | RunFiles) -> CheckpointList:
    """List a run's checkpoints.

    Args:
        run_dir: The run's output directory, or another way to its files.

    Returns:
        The list. One that is empty says why; a missing directory is no error here.
    """
    run = LocalRunFiles(Path(run_dir)) if isinstance(run_dir, str | Path) else run_dir
    files = run.files()
    if files is None:
        return _empty(run, EmptyReason.DIRECTORY_MISSING, f"{run.location} does not exist or is not a directory")
    groups = _by_checkpoint(files)
    if not groups:
        return _without_checkpoints(run, files)
    states = {name: _state(run, f"{name}/", group) for name, group in groups.items()}
    checkpoints = sorted((_checkpoint(run, name, group, states[name]) for name, group in groups.items()), key=_age)
    newest = _newest_state([_state(run, "", files), *states.values()])
    return _summary(
        run, tuple(_with_scores(checkpoint, states[checkpoint.name], newest) for checkpoint in checkpoints), newest
    )


def resolve_checkpoint(reference: str, run_dir: str | Path | None) -> Path:
    """The directory that a local checkpoint reference means.

    Args:
        reference: A path, ``latest``, ``best``, a bare name such as ``checkpoint-900``, or one of those below a path
            (``/runs/42/latest``). A path to the adapter's directory or file inside a checkpoint means the checkpoint.
        run_dir: The run's output directory, for words and bare names.

    Raises:
        PackagingError: ``checkpoint_not_found`` or ``checkpoints_empty``, saying what there is.
    """
    if "/" not in reference:
        if run_dir is None:
            raise PackagingError(
                ErrorCode.CHECKPOINT_NOT_FOUND,
                f"checkpoint {reference!r} is looked up in a run's directory, and none is given",
                remedy="Give the checkpoint's full path, or the run's path and the word, e.g. /runs/42/latest.",
            )
        return Path(run_dir) / choose_checkpoint(list_checkpoints(run_dir), reference).name
    path = Path(reference)
    if path.name in CHECKPOINT_WORDS and not path.exists():
        return path.parent / choose_checkpoint(list_checkpoints(path.parent), path.name).name
    if path.is_file() and path.name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        path = path.parent
    if not path.is_dir():
        _not_found(path)
    if path.name in ADAPTER_SUBDIRECTORIES and is_checkpoint_name(path.parent.name):
        return path.parent
    _refuse_run(path)
    return path


def empty_error(listing: CheckpointList) -> PackagingError | None:
    """Why a run has nothing to package, as an error; ``None`` where it has something."""
    if listing.empty_reason is None:
        return None
    return PackagingError(
        ErrorCode.CHECKPOINTS_EMPTY,
        listing.explanation or listing.directory,
        remedy=_empty_remedy(listing),
        fields={"directory": listing.directory, "reason": listing.empty_reason.value},
    )


def _empty_remedy(listing: CheckpointList) -> str | None:
    if listing.runs:
        return f"Give one of the runs; the newest is {listing.directory}/{listing.runs[0]}."
    known = next((checkpoint.remedy for checkpoint in reversed(listing.checkpoints) if checkpoint.remedy), None)
    return known or (_EMPTY_REMEDIES.get(listing.empty_reason) if listing.empty_reason else None)


def choose_checkpoint(listing: CheckpointList, reference: str) -> Checkpoint:
    """The checkpoint of a list that ``latest``, ``best`` or a bare name means.

    Raises:
        PackagingError: ``checkpoint_not_found`` or ``checkpoints_empty``, saying what there is.
    """
    empty = empty_error(listing)
    if empty is not None and listing.find(reference) is None:
        raise empty
    name = {"latest": listing.latest, "best": listing.best}.get(reference, reference)
    if name is None:
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_FOUND,
            f"no best checkpoint is known in {listing.directory}: no evaluation scores decide it",
            remedy=f"Use latest, or name one: {_names(listing.checkpoints)}.",
            fields={"directory": listing.directory, "known": [checkpoint.name for checkpoint in listing.checkpoints]},
        )
    checkpoint = listing.find(name)
    if checkpoint is None:
        raise _no_such(listing, name)
    if not checkpoint.usable:
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_FOUND,
            f"{checkpoint.path} cannot be packaged: {checkpoint.problem}",
            remedy=checkpoint.remedy
            or f"Use another one: {_names(other for other in listing.checkpoints if other.usable) or 'there is none'}.",
            fields={"checkpoint": checkpoint.name, "problem": checkpoint.problem},
        )
    return checkpoint


def passed_over(listing: CheckpointList, name: str) -> tuple[Checkpoint, ...]:
    """The checkpoints newer than ``name`` that cannot be packaged: what ``latest`` would have meant without them."""
    chosen = listing.find(name)
    later = listing.checkpoints[listing.checkpoints.index(chosen) + 1 :] if chosen is not None else ()
    return tuple(checkpoint for checkpoint in later if not checkpoint.usable)


def checkpoint_kind(directory: Path) -> CheckpointKind:
    """What one local checkpoint directory holds."""
    return classify(LocalRunFiles(directory), "", LocalRunFiles(directory).files() or {})[0]


_EMPTY_REMEDIES = {
    EmptyReason.DIRECTORY_MISSING: "Correct the path; it must be the output directory of the training run.",
    EmptyReason.NO_CHECKPOINTS: "Check that this is the run's output directory and that training saved checkpoints.",
    EmptyReason.NOT_LORA: "Package it with `quantize_base`, giving the directory as the base model.",
    EmptyReason.ALL_INCOMPLETE: "The saves were cut short; copy the checkpoints again, or train on.",
}


def _by_checkpoint(files: Mapping[str, RunFile]) -> dict[str, dict[str, RunFile]]:
    """Files by checkpoint; the directory itself stands under the empty name, so that an empty one is seen, too."""
    groups: dict[str, dict[str, RunFile]] = {}
    for name, file in files.items():
        head, slash, tail = name.partition("/")
        if slash and is_checkpoint_name(head):
            groups.setdefault(head, {})[tail] = file
    return groups


def _checkpoint(run: RunFiles, name: str, files: Mapping[str, RunFile], state: TrainerState | None) -> Checkpoint:
    kind, weights, problem = classify(run, f"{name}/", files)
    number = step_of(name)
    return Checkpoint(
        name=name,
        path=f"{run.location}/{name}",
        step=number if number is not None else state.step if state else None,
        time=max(file.time for file in files.values()),
        kind=kind,
        size_bytes=sum(file.size_bytes for file in files.values()),
        weights_bytes=sum(files[weight_file].size_bytes for weight_file in weights),
        problem=problem,
        remedy=remedy_of(run, f"{name}/", files, problem),
    )


def _state(run: RunFiles, prefix: str, files: Mapping[str, RunFile]) -> TrainerState | None:
    file = files.get(TRAINER_STATE)
    if file is None or file.size_bytes > MAX_STATE_BYTES:
        return None
    try:
        return parse_trainer_state(run.read(prefix + TRAINER_STATE, 0, file.size_bytes))
    except OSError:
        return None


def _newest_state(states: Iterable[TrainerState | None]) -> TrainerState | None:
    # the first of equals wins: the run's own state, written at the end, over that of the last checkpoint
    return max((state for state in states if state is not None), key=lambda state: state.step or 0, default=None)


def _with_scores(checkpoint: Checkpoint, own: TrainerState | None, newest: TrainerState | None) -> Checkpoint:
    if checkpoint.step is None:
        return checkpoint
    # its own state knows its own weights; the newest also knows evaluations made after it was saved
    later, first = (dict(state.scores.get(checkpoint.step, {})) if state else {} for state in (newest, own))
    return checkpoint.model_copy(update={"scores": later | first})


def _summary(run: RunFiles, checkpoints: tuple[Checkpoint, ...], newest: TrainerState | None) -> CheckpointList:
    usable = [checkpoint for checkpoint in checkpoints if checkpoint.usable]
    metric = deciding_metric(newest, (checkpoint.scores for checkpoint in usable))
    best, recorded = _best(usable, newest, metric)
    stopped = newest.step if newest is not None and newest.stopped_early else None
    before = [
        checkpoint
        for checkpoint in usable
        if stopped is not None and checkpoint.step is not None and checkpoint.step < stopped
    ]
    listing = CheckpointList(
        directory=run.location,
        checkpoints=checkpoints,
        latest=usable[-1].name if usable else None,
        best=best,
        metric=metric.name if metric else None,
        greater_is_better=metric.greater_is_better if metric else None,
        best_recorded=recorded,
        stopped_early_at=stopped,
        before_early_stopping=before[-1].name if before else None,
    )
    if usable:
        return listing
    reasons = "; ".join(f"{checkpoint.name}: {checkpoint.problem}" for checkpoint in checkpoints[-_SHOWN_NAMES:])
    explanation = f"{run.location} has {len(checkpoints)} checkpoint(s), none of which can be packaged ({reasons})"
    return listing.model_copy(update={"empty_reason": EmptyReason.ALL_INCOMPLETE, "explanation": explanation})


def _best(
    usable: list[Checkpoint], newest: TrainerState | None, metric: DecidingMetric | None
) -> tuple[str | None, bool]:
    if newest is not None:
        for checkpoint in usable:
            if checkpoint.name == newest.best_name or (
                checkpoint.step is not None and checkpoint.step == newest.best_step
            ):
                return checkpoint.name, True
    if metric is None:
        return None, False
    scored = [(value, checkpoint) for checkpoint in usable if (value := checkpoint.scores.get(metric.name)) is not None]
    if not scored:
        return None, False
    sign = 1 if metric.greater_is_better else -1
    # of equals the earlier one, as the trainer itself decides
    return max(scored, key=lambda pair: (sign * pair[0], -(pair[1].step or 0)))[1].name, False


def _age(checkpoint: Checkpoint) -> tuple[int, datetime, str]:
    return (-1 if checkpoint.step is None else checkpoint.step, checkpoint.time, checkpoint.name)


def _empty(run: RunFiles, reason: EmptyReason, explanation: str) -> CheckpointList:
    return CheckpointList(directory=run.location, empty_reason=reason, explanation=explanation)


def _without_checkpoints(run: RunFiles, files: Mapping[str, RunFile]) -> CheckpointList:
    own = {
        name: file
        for name, file in files.items()
        if "/" not in name.rstrip("/") or name.split("/")[0] in ADAPTER_SUBDIRECTORIES
    }
    kind, _, _ = classify(run, "", own)
    where = run.location
    if kind is CheckpointKind.FULL:
        return _empty(run, EmptyReason.NOT_LORA, f"{where} holds full weights and no checkpoint-*: not a LoRA run")
    if kind is CheckpointKind.ADAPTER:
        return _empty(
            run, EmptyReason.NO_CHECKPOINTS, f"{where} has no checkpoint-*; it is an adapter itself: give its path"
        )
    shards = shards_of(run, "", own)
    if shards is not None:
        return _empty(run, EmptyReason.NO_CHECKPOINTS, f"{where} holds {shards.what}. {shards.remedy}")
    below = _runs_below(files)
    if below:
        explanation = f"{where} is no run but lies above {len(below)}; the newest first: {_first(below)}"
        return _empty(run, EmptyReason.NO_CHECKPOINTS, explanation).model_copy(update={"runs": below})
    return _empty(run, EmptyReason.NO_CHECKPOINTS, f"{where} has no checkpoint-* directory")


def _runs_below(files: Mapping[str, RunFile]) -> tuple[str, ...]:
    """Directories with checkpoints in them, the one with the newest checkpoint first."""
    newest: dict[str, datetime] = {}
    for name, file in files.items():
        run, slash, checkpoint = name.rstrip("/").partition("/")
        if slash and name.endswith("/") and is_checkpoint_name(checkpoint):
            newest[run] = max(file.time, newest.get(run, file.time))
    return tuple(sorted(newest, key=lambda run: (newest[run], run), reverse=True))


def _first(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _names(checkpoints: Iterable[Checkpoint]) -> str:
    names = [checkpoint.name for checkpoint in checkpoints]
    return ", ".join(
        ([f"... {len(names) - _SHOWN_NAMES} more"] if len(names) > _SHOWN_NAMES else []) + names[-_SHOWN_NAMES:]
    )


def _no_such(listing: CheckpointList, name: str) -> PackagingError:
    known = [checkpoint.name for checkpoint in listing.checkpoints]
    close = _nearest(listing, name)
    return PackagingError(
        ErrorCode.CHECKPOINT_NOT_FOUND,
        f"no {name} in {listing.directory}" + did_you_mean(close),
        remedy=f"There are: {_names(listing.checkpoints)}.",
        fields={"directory": listing.directory, "checkpoint": name, "known": known},
    )


def _nearest(listing: CheckpointList, name: str) -> str | None:
    """The name that was meant: for a number the one with the nearest step, else the one spelt most alike."""
    number = re.fullmatch(r"(?:checkpoint-)?(\d{1,12})", name)
    stepped = [checkpoint for checkpoint in listing.checkpoints if checkpoint.step is not None]
    if number and stepped:
        return min(stepped, key=lambda checkpoint: abs((checkpoint.step or 0) - int(number[1]))).name
    return nearest(name, [checkpoint.name for checkpoint in listing.checkpoints])


def _not_found(path: Path) -> NoReturn:
    if path.parent.is_dir():
        listing = list_checkpoints(path.parent)
        if listing.checkpoints:
            raise _no_such(listing, path.name)
    missing = next((directory for directory in reversed((path, *path.parents)) if not directory.is_dir()), path)
    hint = "" if missing == path else f": {missing} is missing"
    raise PackagingError(
        ErrorCode.CHECKPOINT_NOT_FOUND,
        f"{path} {'is not a directory' if path.exists() else 'does not exist'}{hint}",
        fields={"checkpoint": str(path)},
    )


def _refuse_run(path: Path) -> None:
    """A run's directory, or one above runs, is not a checkpoint where it holds no weights; say which ones there are."""
    names = {entry.name for entry in path.iterdir()}
    if any(name.endswith(".safetensors") for name in names) or ADAPTER_CONFIG in names:
        return
    if any(map(is_checkpoint_name, names)) and not names & set(ADAPTER_SUBDIRECTORIES):
        listing = list_checkpoints(path)
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_FOUND,
            f"{path} is a run, not a checkpoint; it has {_names(listing.checkpoints)}",
            remedy=f"Give {path}/latest, {path}/best or one of the names.",
            fields={"directory": str(path), "known": [checkpoint.name for checkpoint in listing.checkpoints]},
        )
    files = LocalRunFiles(path).files() or {}
    shards, below = shards_of(LocalRunFiles(path), "", files), _runs_below(files)
    if shards is not None:
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_FOUND,
            f"{path} holds {shards.what}",
            remedy=f"{shards.remedy}.",
            fields={"checkpoint": str(path)},
        )
    if below:
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_FOUND,
            f"{path} is no checkpoint but lies above {len(below)} run(s), the newest first: {_first(below)}",
            remedy=f"Give {path}/{below[0]}/latest, or a checkpoint of another run.",
            fields={"directory": str(path), "known": list(below)},
        )

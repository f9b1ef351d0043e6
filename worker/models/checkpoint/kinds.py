"""What a checkpoint directory holds, seen from its file names: an adapter, full weights, or pickles only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.files import ADAPTER_SUBDIRECTORIES
from api_client.runs.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLE_SUFFIXES, CheckpointKind, is_pickled_weights
from api_client.runs.shards import shards_among
from config.roots import NOWHERE_ELSE, Roots
from worker.models.checkpoint.files import resolve_member


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """Where a checkpoint's weights are.

    Attributes:
        kind: Adapter or full weights.
        directory: The directory that holds the weights: the checkpoint itself or ``adapter_model/`` inside it.
    """

    kind: CheckpointKind
    directory: Path


def classify_checkpoint(directory: Path, *, allowed_roots: Roots = NOWHERE_ELSE) -> CheckpointLayout:
    """Tell an adapter from full weights by the files that are there; nothing is opened.

    Raises:
        PackagingError: ``checkpoint_not_found``; ``weights_pickled`` where the weights are pickles only;
            ``adapter_invalid`` for an adapter without config or without weights; ``path_not_allowed``.
    """
    if not directory.is_dir():
        raise PackagingError(ErrorCode.CHECKPOINT_NOT_FOUND, f"{directory} is not a directory")
    for sub in ADAPTER_SUBDIRECTORIES:
        candidate = directory / sub
        if not candidate.is_dir():
            continue
        if sub:
            candidate = resolve_member(directory, sub, allowed_roots, ErrorCode.ADAPTER_INVALID)
        if _is_adapter(candidate):
            return CheckpointLayout(CheckpointKind.ADAPTER, candidate)
    names = _names(directory)
    if any(name.endswith(".safetensors") for name in names):
        return CheckpointLayout(CheckpointKind.FULL, directory)
    refuse_shards(directory, names, ErrorCode.CHECKPOINT_NOT_FOUND)
    pickles = [name for name in names if is_pickled_weights(name)]
    if pickles:
        raise PackagingError(
            ErrorCode.WEIGHTS_PICKLED, f"{directory} holds only pickled weights: {', '.join(pickles[:3])}"
        )
    raise PackagingError(
        ErrorCode.CHECKPOINT_NOT_FOUND,
        f"{directory} holds neither {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS} nor *.safetensors weights",
    )


def refuse_shards(directory: Path, names: Iterable[str], code: ErrorCode) -> None:
    """Refuse a directory in which a sharding trainer saved its own parts alone, with the command that joins them.

    Raises:
        PackagingError: ``code``.
    """
    shards = shards_among(names, str(directory))
    if shards is not None:
        raise PackagingError(code, f"{directory} holds {shards.what}", remedy=f"{shards.remedy}.")


def require_adapter(directory: Path, *, allowed_roots: Roots = NOWHERE_ELSE) -> Path:
    """The directory that holds the adapter's files.

    Raises:
        PackagingError: ``checkpoint_not_adapter`` for full weights, and whatever ``classify_checkpoint`` raises.
    """
    layout = classify_checkpoint(directory, allowed_roots=allowed_roots)
    if layout.kind is not CheckpointKind.ADAPTER:
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_ADAPTER,
            f"{directory} holds full weights (no {ADAPTER_CONFIG})",
            fields={"checkpoint": str(directory)},
        )
    return layout.directory


def _is_adapter(directory: Path) -> bool:
    """Whether both files of an adapter are here; one without the other is an error."""
    names = _names(directory)
    has_config, has_weights = ADAPTER_CONFIG in names, ADAPTER_WEIGHTS in names
    if has_config and has_weights:
        return True
    if has_config:
        pickles = [name for name in names if name.startswith("adapter_model") and name.endswith(PICKLE_SUFFIXES)]
        if pickles:
            raise PackagingError(
                ErrorCode.WEIGHTS_PICKLED,
                f"{directory} holds the adapter only as {pickles[0]}; unpickling could run code",
                remedy="Save the adapter again with safetensors (`save_pretrained` of a current PEFT).",
            )
        if not any((directory / sub / ADAPTER_WEIGHTS).is_file() for sub in ADAPTER_SUBDIRECTORIES[1:]):
            raise PackagingError(
                ErrorCode.ADAPTER_INVALID, f"{directory} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}"
            )
    if has_weights and not has_config:
        raise PackagingError(ErrorCode.ADAPTER_INVALID, f"{directory} has {ADAPTER_WEIGHTS} but no {ADAPTER_CONFIG}")
    return False


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())

"""What a checkpoint directory of a run holds, seen without reading weights: an adapter, full weights, or wreckage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from api_client.runs.files import ADAPTER_SUBDIRECTORIES, RunFile, RunFiles
from api_client.runs.shards import Shards, shards_among

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_HEADER_BYTES = 100 * 10**6
"""The safetensors format's own bound."""

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack")
_PICKLED_WEIGHTS = ("pytorch_model", "model", "adapter_model", "consolidated")


class CheckpointKind(StrEnum):
    """What a checkpoint directory holds."""

    ADAPTER = "adapter"
    FULL = "full"
    INCOMPLETE = "incomplete"
    """Nothing that can be packaged; ``problem`` says why."""


def is_pickled_weights(name: str) -> bool:
    """Whether a file's name is that of pickled weights; trainer state such as ``optimizer.pt`` lies beside them."""
    return name.startswith(_PICKLED_WEIGHTS) and name.endswith(PICKLE_SUFFIXES)


def classify(
    run: RunFiles, prefix: str, files: Mapping[str, RunFile]
) -> tuple[CheckpointKind, tuple[str, ...], str | None]:
    """Tell what a checkpoint is by its files' names and the headers of its safetensors files.

    Args:
        run: The run.
        prefix: The checkpoint's directory within the run, with a slash at its end; empty for the run itself.
        files: The checkpoint's files, relative to that directory.

    Returns:
        Kind, names of the weight files, and for an incomplete one the problem.
    """
    for sub in ADAPTER_SUBDIRECTORIES:
        base = f"{sub}/" if sub else ""
        if base + ADAPTER_CONFIG in files and base + ADAPTER_WEIGHTS in files:
            return _checked(run, prefix, files, CheckpointKind.ADAPTER, (base + ADAPTER_WEIGHTS,))
    weights = tuple(name for name in files if "/" not in name and re.fullmatch(r"model.*\.safetensors", name))
    if weights:
        return _checked(run, prefix, files, CheckpointKind.FULL, weights)
    shards = shards_of(run, prefix, files)
    if shards is not None:
        return CheckpointKind.INCOMPLETE, (), shards.what
    pickles = [name for name in files if is_pickled_weights(name.rpartition("/")[2])]
    if pickles:
        return CheckpointKind.INCOMPLETE, (), f"only pickled weights ({pickles[0]}); save with safetensors"
    for present, absent in ((ADAPTER_CONFIG, ADAPTER_WEIGHTS), (ADAPTER_WEIGHTS, ADAPTER_CONFIG)):
        if any(name.rpartition("/")[2] == present for name in files):
            return CheckpointKind.INCOMPLETE, (), f"{present} without {absent}"
    return CheckpointKind.INCOMPLETE, (), "no weights"


def shards_of(run: RunFiles, prefix: str, files: Iterable[str]) -> Shards | None:
    """What a sharding trainer saved for itself in a checkpoint; arguments as :func:`classify`."""
    entries = {name for name in files if "/" not in name.rstrip("/")}
    return shards_among(entries, f"{run.location}/{prefix}".rstrip("/"))


def remedy_of(run: RunFiles, prefix: str, files: Iterable[str], problem: str | None) -> str | None:
    """What makes a checkpoint usable whose problem is that one, where a command does; arguments as :func:`classify`."""
    shards = shards_of(run, prefix, files)
    return shards.remedy if shards is not None and shards.what == problem else None


def _checked(
    run: RunFiles, prefix: str, files: Mapping[str, RunFile], kind: CheckpointKind, weights: tuple[str, ...]
) -> tuple[CheckpointKind, tuple[str, ...], str | None]:
    held_bytes, problem = 0, None
    for name in weights:
        damage, data_bytes = _damage(run, prefix + name, files[name].size_bytes)
        problem, held_bytes = problem or damage, held_bytes + data_bytes
    if problem is None and kind is CheckpointKind.FULL:
        problem = _missing_shard(weights)
    if problem is None and not held_bytes:
        problem = f"{weights[0].rpartition('/')[2]} holds no values; the process that saved it had not gathered them"
    return (kind if problem is None else CheckpointKind.INCOMPLETE), weights, problem


def _damage(run: RunFiles, name: str, size_bytes: int) -> tuple[str | None, int]:
    """Why a safetensors file is cut short or damaged, seen from its header; and the bytes of its tensors."""
    short = name.rpartition("/")[2]
    try:
        length = int.from_bytes(run.read(name, 0, 8), "little")
        if size_bytes < 8 or not 0 < length <= min(MAX_HEADER_BYTES, size_bytes - 8):
            return f"{short} is cut short or damaged ({size_bytes} bytes)", 0
        header = json.loads(run.read(name, 8, length))
        held = max((int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return f"{short} has a damaged header", 0
    except OSError as error:
        return f"{short} cannot be read: {error.strerror or error}", 0
    expected = 8 + length + held
    return (None if expected == size_bytes else f"{short} is {size_bytes} bytes, its header says {expected}"), held


def _missing_shard(weights: Iterable[str]) -> str | None:
    numbers = [(int(m[1]), int(m[2])) for name in weights if (m := re.search(r"-(\d+)-of-(\d+)\.safetensors$", name))]
    missing = sorted(set(range(1, numbers[0][1] + 1)) - {number for number, _ in numbers}) if numbers else []
    return f"shard {missing[0]} of {numbers[0][1]} is missing" if missing else None

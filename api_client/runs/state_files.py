"""The state of a training run that lies beside weights: known by name, and by what a torch file lists of itself.

A pickle is never opened: a torch file is a zip archive, whose list of files says how many bytes of tensors it holds.
"""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.files import ADAPTER_SUBDIRECTORIES

VALUE_HEAD = "value_head"  # of reward models and PPO: weights, but no part of a language model
_KIB, _MIB = 1 << 10, 1 << 20
_LISTED_BYTES = 256 * _MIB  # the list of a larger archive is not read
# by name: the tensors that it may hold, in bytes; None for any number
_STATE: Sequence[tuple[re.Pattern[str], int | None]] = (
    (re.compile(r"optimizer.*|.*optim_states"), None),
    (re.compile(r"(lr_|step_)?scheduler.*|scaler.*|training_args|trainer_state|train_state"), 4 * _KIB),
    (re.compile(r"rng.*|random_states.*|sampler.*|dataloader.*"), _MIB),
)
_LEGACY_BYTES = _MIB  # of a pickle that is no archive, so that its size is all that is known of it
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def is_state(stem: str, held: int | None = 0, size_bytes: int = 0) -> bool:
    """Whether a file is a training run's state.

    Args:
        stem: Its name without the suffix.
        held: Bytes of tensors in it, None where that is not known.
        size_bytes: Its size.
    """
    for pattern, allowed in _STATE:
        if pattern.fullmatch(stem):
            return allowed is None or (size_bytes <= _LEGACY_BYTES if held is None else held <= allowed)
    return False


def may_hold_weights(path: Path, stem: str) -> bool:
    """Whether a pickle may hold weights, by its name and its list of files."""
    size_bytes = path.stat().st_size
    held = _tensor_bytes(path, size_bytes)
    return held != 0 and not is_state(stem, held, size_bytes)


def unread_weights(names: Iterable[str]) -> str | None:
    """The first of a directory's names that is a torch file beside an adapter and no state of the run's."""
    known = set(names)
    for name in sorted(known):
        path = PurePosixPath(name)
        converted = f"{name.removesuffix(path.suffix)}.safetensors" in known
        here = len(path.parts) == 1 or (len(path.parts) == 2 and path.parts[0] in ADAPTER_SUBDIRECTORIES)
        if (
            path.suffix in _TORCH_SUFFIXES
            and here
            and not (converted or is_state(path.stem) or path.stem == VALUE_HEAD)
        ):
            return name
    return None


def pickled_beside(shown: str, fields: dict[str, object]) -> PackagingError:
    """The error for weights beside an adapter that only unpickling would read.

    Args:
        shown: The file's path or URL.
        fields: Of the error.
    """
    name = PurePosixPath(shown).name
    source, target = shlex.quote(name), shlex.quote(f"{PurePosixPath(name).stem}.safetensors")
    command = (
        "import sys, torch, safetensors.torch as s; "
        "s.save_file({n: t.clone().contiguous() for n, t in "
        "torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}, sys.argv[2])"
    )
    return PackagingError(
        ErrorCode.WEIGHTS_PICKLED,
        f"{shown} lies beside the adapter and may hold trained weights; it is a pickle, which could run code and is "
        "not read",
        remedy=f'Convert it in its directory: python -c "{command}" {source} {target} -- or move it away if it is no '
        "part of the model.",
        fields={"file": name, **fields},
    )


def _tensor_bytes(path: Path, size_bytes: int) -> int | None:
    """Bytes of tensors in a torch file, by its list of files; None for a pickle without such a list."""
    if size_bytes > _LISTED_BYTES:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist() if "/data/" in member.filename)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None

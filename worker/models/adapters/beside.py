"""Files beside an adapter that may hold trained weights: which are read, which are known to hold none, which are not.

Trainers put what they trained beside LoRA into files of their own: LLaVA ``non_lora_trainables.bin`` and
``mm_projector.bin``, the Qwen-VL trainers ``non_lora_state_dict.bin``, LongLoRA ``trainable_params.bin``, ms-swift
``vit.safetensors``. Safetensors files are read as more tensors of the adapter; pickles are refused. torchtune's merged
model, which lies beside the adapter that is merged into it, is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from api_client.contract.errors import ErrorCode
from api_client.runs.checkpoint_names import is_checkpoint_name
from api_client.runs.files import ADAPTER_SUBDIRECTORIES
from api_client.runs.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLE_SUFFIXES
from api_client.runs.state_files import VALUE_HEAD, is_state, may_hold_weights, pickled_beside
from config.roots import Roots
from worker.models.checkpoint.files import resolve_member

# torchtune writes each epoch's adapter twice, and beside it the model with that adapter merged
_TORCHTUNE, _MERGED = "adapter_model.pt", re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_KNOWN_DIRECTORIES = re.compile(r"global_step\d+|optim(izer)?(_\d+)?|pytorch_model_fsdp_\d+|\d+_\w+|\..*")
_OTHER_WEIGHTS = (".gguf", ".h5", ".npz", ".onnx", ".distcp")


@dataclass(frozen=True, slots=True)
class Beside:
    """The files beside an adapter.

    Attributes:
        weights: Safetensors files to read as more tensors of the adapter, links followed -> their names there.
        left_out: Names of files with weights that are not read, and are no part of the model.
    """

    weights: Mapping[Path, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def find_beside(opened: Path, adapter_dir: Path, allowed_roots: Roots) -> Beside:
    """Look at every file beside an adapter's, and of the checkpoint around it.

    Args:
        opened: The directory that was asked for.
        adapter_dir: The one that holds the adapter: the same, or one inside it.
        allowed_roots: Where links may lead.

    Raises:
        PackagingError: ``weights_pickled``, naming the file and the command that converts it; ``path_not_allowed``.
    """
    weights: dict[Path, str] = {}
    left_out = []
    for directory in _directories(opened, adapter_dir):
        names = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
        merged_beside = _TORCHTUNE in names
        for name in names:
            stem, suffix = Path(name).stem, Path(name).suffix.lower()
            is_value_head = stem == VALUE_HEAD and suffix in (".safetensors", *PICKLE_SUFFIXES)
            if suffix in _OTHER_WEIGHTS or is_value_head or (merged_beside and _MERGED.fullmatch(name)):
                left_out.append(name)
            elif suffix == ".safetensors" and name != ADAPTER_WEIGHTS and not is_state(stem):
                weights[resolve_member(directory, name, allowed_roots, ErrorCode.ADAPTER_INVALID)] = name
            elif suffix in PICKLE_SUFFIXES and f"{stem}.safetensors" not in names:
                path = resolve_member(directory, name, allowed_roots, ErrorCode.ADAPTER_INVALID)
                if may_hold_weights(path, stem):
                    raise pickled_beside(str(directory / name), {"size_bytes": path.stat().st_size})
    return Beside(weights, (*left_out, *_in_directories(opened)))


def _in_directories(opened: Path) -> Iterator[str]:
    """Files with weights one directory down, which nobody reads, relative to the checkpoint.

    Sharded state (``global_step20``, ``optim``) and modules of sentence-transformers, which are numbered, are known;
    so are other checkpoints and models, which have a config of their own.
    """
    for directory in sorted(entry for entry in opened.iterdir() if entry.is_dir()):
        own_config = any((directory / name).exists() for name in ("config.json", ADAPTER_CONFIG))
        if own_config or _KNOWN_DIRECTORIES.fullmatch(directory.name) or is_checkpoint_name(directory.name):
            continue
        for entry in sorted(directory.iterdir()):
            suffix = entry.suffix.lower()
            weights = suffix == ".safetensors" or (suffix in PICKLE_SUFFIXES and entry.is_file())
            if (
                weights
                and not is_state(entry.stem)
                and (suffix == ".safetensors" or may_hold_weights(entry, entry.stem))
            ):
                yield f"{directory.name}/{entry.name}"


def _directories(opened: Path, adapter_dir: Path) -> Iterator[Path]:
    yield adapter_dir
    if opened != adapter_dir:
        yield opened
    elif adapter_dir.name in ADAPTER_SUBDIRECTORIES[1:] and is_checkpoint_name(adapter_dir.parent.name):
        yield adapter_dir.parent

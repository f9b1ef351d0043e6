"""``save_merged``: the merged model as a Hugging Face directory, streamed like the GGUF and by the same writer.

Layout as transformers saves it: ``model.safetensors``, or ``model-00001-of-0000N.safetensors`` with an index;
``config.json``, ``generation_config.json``, the tokenizer's files and template. Weights keep the base model's names
and dtypes, so with an overlay of precision ``base`` they are PEFT's bit for bit; float32 sums of an ``f32`` overlay
are rounded here, once. Memory: a few times the largest tensor. Disk: the output.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.checkpoint.base_model import torch_dtypes
from worker.models.convert.card import is_hub_id
from worker.models.convert.evaluate import as_numpy, shared_cores
from worker.models.convert.pipeline import input_fingerprint
from worker.models.convert.staging import merged_config, write_json, write_template
from worker.models.convert.tokenizer import CONFIG, TokenizerChoice
from worker.models.convert.weights import MergedWeights, WeightEntry
from worker.models.convert.writer import WrittenFile, write_plan
from worker.setting import ON_THIS_MACHINE, WorkProgress, WorkSetting
from worker.stop import StopRequested

_SHARD_BYTES = 5_000_000_000  # transformers' usual limit


@dataclass(frozen=True)
class _Tensor:
    name: str
    offset: int
    size_bytes: int
    value: WeightEntry


@dataclass(frozen=True)
class _Shard:
    """One safetensors file; satisfies the writer's ``FilePlan``."""

    header: bytes
    tensors: tuple[_Tensor, ...]
    size_bytes: int
    evaluator: _Rounded


class _Rounded:
    """Makes a merged tensor's bytes in the base tensor's dtype."""

    def __init__(self, dtypes: Mapping[str, torch.dtype]) -> None:
        self._dtypes = dtypes

    def bytes_of(self, node: WeightEntry) -> NDArray[np.uint8]:
        tensor = node.load().to(self._dtypes[node.name])
        flat: NDArray[np.uint8] = as_numpy(tensor.contiguous().reshape(-1).view(torch.uint8))
        return flat


def save_merged(
    base: BaseModel,
    overlay: Overlay,
    out_dir: Path,
    *,
    tokenizer: TokenizerChoice | None,
    shard_bytes: int = _SHARD_BYTES,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> list[WrittenFile]:
    """Write the merged model.

    Args:
        base: The base model.
        overlay: Updates to merge.
        out_dir: Directory to write into; created. Shards appear complete or not at all, the index last.
        tokenizer: From ``find_tokenizer``; None leaves the tokenizer out.
        shard_bytes: Largest size of a shard's tensors together.
        setting: As for :func:`~worker.models.convert.writer.write_plan`; bytes are counted over all shards.

    Returns:
        The weight files, in order.

    Raises:
        StopRequested: Finished shards and the partial one stay, and a later call goes on from the partial one.
        PackagingError: ``adapter_mismatch``, ``disk_space_insufficient``, ``output_dir_not_writable``.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    weights = MergedWeights(base, overlay)
    entries = [*weights.entries().values()]
    dtypes = {entry.name: _stored_dtype(base, overlay, entry.name) for entry in entries}
    shards = list(_shards(entries, dtypes, shard_bytes))
    names = _shard_names(len(shards))
    total = sum(shard.size_bytes for shard in shards)
    written: list[WrittenFile] = []

    def report_all(shard: WorkProgress) -> None:
        done = sum(file.size_bytes for file in written) + shard.done
        setting.report(WorkProgress(done, total, shard.detail))

    for name, shard in zip(names, shards, strict=True):
        if written and setting.should_stop():
            # a shard whose tensors were all begun is finished, and the next one not begun
            raise StopRequested
        with shared_cores(setting.threads or 1):
            file = write_plan(
                shard,
                out_dir / name,
                fingerprint=input_fingerprint(shard.header, base, overlay, "safetensors"),
                setting=replace(setting, report=report_all),
            )
        written.append(file)
    write_json(out_dir / "config.json", merged_config(base, overlay.config_changes()))
    if tokenizer is not None:
        _copy_tokenizer(out_dir, tokenizer)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard.tensors}
        size = sum(tensor.size_bytes for shard in shards for tensor in shard.tensors)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(out_dir / "model.safetensors.index.json", index)
    return written


def _stored_dtype(base: BaseModel, overlay: Overlay, name: str) -> torch.dtype:
    return torch_dtypes()[base.tensors[overlay.added().get(name, name)].dtype]


def _shards(entries: Sequence[WeightEntry], dtypes: Mapping[str, torch.dtype], shard_bytes: int) -> Iterator[_Shard]:
    rounded = _Rounded(dtypes)
    group: list[WeightEntry] = []
    group_bytes = 0
    for entry in entries:
        size = _size_bytes(entry, dtypes)
        if group and group_bytes + size > shard_bytes:
            yield _shard(group, dtypes, rounded)
            group, group_bytes = [], 0
        group.append(entry)
        group_bytes += size
    yield _shard(group, dtypes, rounded)


def _shard(entries: Sequence[WeightEntry], dtypes: Mapping[str, torch.dtype], rounded: _Rounded) -> _Shard:
    names = {dtype: name for name, dtype in torch_dtypes().items()}
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        end = position + _size_bytes(entry, dtypes)
        described[entry.name] = {
            "dtype": names[dtypes[entry.name]], "shape": list(entry.shape), "data_offsets": [position, end],
        }  # fmt: skip
        position = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    tensors = tuple(
        _Tensor(entry.name, len(header) + described[entry.name]["data_offsets"][0], _size_bytes(entry, dtypes), entry)
        for entry in entries
    )
    return _Shard(header, tensors, len(header) + position, rounded)


def _size_bytes(entry: WeightEntry, dtypes: Mapping[str, torch.dtype]) -> int:
    return int(np.prod(entry.shape, dtype=np.int64)) * dtypes[entry.name].itemsize


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _public(key: str, value: Any) -> bool:
    """Old transformers wrote into ``tokenizer_config.json`` where its files lay on the machine that saved it."""
    return not key.endswith(("_file", "name_or_path")) or is_hub_id(value)


def _copy_tokenizer(out_dir: Path, tokenizer: TokenizerChoice) -> None:
    for name, path in tokenizer.files.items():
        if name != CONFIG:
            shutil.copyfile(path, out_dir / name)
    config = {key: value for key, value in tokenizer.config.items() if key != "chat_template" and _public(key, value)}
    if config:
        write_json(out_dir / CONFIG, config)
    if tokenizer.chat_template is not None:
        write_template(out_dir, tokenizer.chat_template)
    if tokenizer.generation_config:
        write_json(out_dir / "generation_config.json", tokenizer.generation_config)

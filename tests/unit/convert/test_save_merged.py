"""The merged Hugging Face checkpoint: loads in transformers, and is what PEFT would have saved."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import save_peft_merge
from worker.models.convert.merged import save_merged
from worker.models.convert.tokenizer import find_tokenizer
from worker.setting import WorkSetting
from worker.stop import StopRequested


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    return tensors


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_weights_are_pefts_and_load(name: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of(name)
    expected = weights_of(save_peft_merge(run.base, run.adapter, tmp_path / "peft"))
    out = tmp_path / "merged"
    files = save_merged(
        run.open_base(), run.overlay(tmp_path / "overlay"), out, tokenizer=find_tokenizer(None, run.base)
    )
    assert [file.path.name for file in files] == ["model.safetensors"]
    assert files[0].sha256 == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    saved = weights_of(out)
    assert saved.keys() == expected.keys()
    assert [key for key in saved if not torch.equal(saved[key], expected[key])] == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16


def test_shards_and_index(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    out = tmp_path / "merged"
    reports: list[tuple[float, float]] = []
    files = save_merged(
        run.open_base(),
        run.overlay(tmp_path / "overlay"),
        out,
        tokenizer=find_tokenizer(None, run.base),
        shard_bytes=30_000,
        setting=WorkSetting(report=lambda at: reports.append((at.done, at.total))),
    )
    assert len(files) > 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(weights_of(out)) == set(run.open_base().tensors)
    assert set(index["weight_map"].values()) == {file.path.name for file in files}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights_of(out).values())
    assert reports[-1][0] == reports[-1][1] == sum(file.size_bytes for file in files)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_no_shard_is_larger_than_asked_unless_one_tensor_is(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    files = save_merged(
        run.open_base(), run.overlay(tmp_path / "overlay"), tmp_path / "out", tokenizer=None, shard_bytes=30_000
    )
    for file in files:
        with safe_open(file.path, "pt") as shard:
            sizes = [shard.get_tensor(name).nbytes for name in shard.keys()]  # noqa: SIM118
        assert sum(sizes) <= 30_000 or len(sizes) == 1


def test_fine_sums_are_rounded_to_the_bases_type(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    save_merged(run.open_base(), run.overlay(tmp_path / "o1", "f32"), fine, tokenizer=None)
    save_merged(run.open_base(), run.overlay(tmp_path / "o2", "base"), coarse, tokenizer=None)
    assert (fine / "model.safetensors").read_bytes() == (coarse / "model.safetensors").read_bytes()


def test_tokenizer_and_template_are_copied_without_code(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    out = tmp_path / "merged"
    save_merged(run.open_base(), run.overlay(tmp_path / "overlay"), out, tokenizer=find_tokenizer(None, run.base))
    assert (out / "tokenizer.model").read_bytes() == (run.base / "tokenizer.model").read_bytes()
    assert not (out / "tokenizer.model").is_symlink()
    assert (out / "chat_template.jinja").read_text().startswith("{% for m in messages %}")
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())


def test_stop_keeps_finished_shards_and_no_index(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    out = tmp_path / "merged"
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count > 4

    settings: dict[str, Any] = {"tokenizer": None, "shard_bytes": 30_000}
    with pytest.raises(StopRequested):
        save_merged(
            run.open_base(), run.overlay(tmp_path / "overlay"), out, **settings, setting=WorkSetting(should_stop=stop)
        )
    assert not (out / "model.safetensors.index.json").exists()
    save_merged(run.open_base(), run.overlay(tmp_path / "overlay"), out, **settings)
    assert set(weights_of(out)) == set(run.open_base().tensors)

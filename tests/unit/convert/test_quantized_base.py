"""An adapter merged into a quantized base: the file is upstream's of what PEFT merges into the dequantized model."""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.quantized import WEIGHTS, float_quantized, fp8, int8, mxfp4, nf4
from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import read_gguf, save_adapter, save_model, save_peft_merge, upstream_convert
from tests.unit.convert.test_convert_equality import assert_same_file
from worker.models.adapters import normalise_for_export, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.lora import export_lora
from worker.models.convert.merged import save_merged
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert

Make = Callable[[Path, Path], Path]
READ_BY_TRANSFORMERS: list[tuple[str, Make, dict[str, Any]]] = [
    ("llama", fp8, {}),
    ("llama", functools.partial(fp8, block=None), {"use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
    ("qwen3-moe", fp8, {"target_modules": ["q_proj", "o_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
    ("gpt-oss", mxfp4, {"target_modules": ["q_proj", "v_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
]
READ_BY_FORMULA: list[tuple[str, Make, dict[str, Any]]] = [
    ("llama", float_quantized, {}),
    ("llama", nf4, {"use_rslora": True}),
    ("mistral", functools.partial(nf4, nested=True), {}),
    ("qwen2", int8, {"target_modules": ["k_proj", "up_proj"], "modules_to_save": ["lm_head"]}),
]


def merged_by_transformers(base: Path, adapter: Path, plain: Path, directory: Path) -> Path:
    """What transformers makes of the quantized model and PEFT of that and the adapter, saved without quantization."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        saved = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(plain), dtype=torch.bfloat16)
        saved.load_state_dict(merged.state_dict())
        saved.save_pretrained(directory)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, directory)
    return directory


def without_quantization(base: Path, plain: Path, directory: Path) -> Path:
    """The quantized model's weights as they are read, in a plain directory."""
    shutil.copytree(plain, directory)
    model = open_base_model(base)
    save_file(
        {name: model.read_tensor(name).contiguous() for name in model.tensors},
        directory / WEIGHTS,
        metadata={"format": "pt"},
    )
    return directory


@pytest.mark.parametrize(("name", "make", "settings"), READ_BY_TRANSFORMERS)
def test_merge_is_that_of_transformers_and_peft(
    name: str, make: Make, settings: dict[str, Any], tmp_path: Path
) -> None:
    plain = save_model(name, tmp_path / "plain")
    run = Run(make(plain, tmp_path / "base-model"), save_adapter(plain, tmp_path / "checkpoint-10", **settings))
    theirs = merged_by_transformers(run.base, run.adapter, plain, tmp_path / "theirs" / "base-model")
    convert(run.base, tmp_path / "ours.gguf", overlay=run.overlay(tmp_path / "overlay"), naming=Naming(model_name="M"))
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(theirs, tmp_path / "theirs.gguf"))


@pytest.mark.parametrize(("name", "make", "settings"), READ_BY_FORMULA)
def test_merge_is_that_into_the_plain_weights(name: str, make: Make, settings: dict[str, Any], tmp_path: Path) -> None:
    """The plain weights themselves are held to their formulas in ``tests/unit/checkpoint/test_dequantize.py``."""
    plain = save_model(name, tmp_path / "plain")
    run = Run(make(plain, tmp_path / "base-model"), save_adapter(plain, tmp_path / "checkpoint-10", **settings))
    dequantized = without_quantization(run.base, plain, tmp_path / "dequantized" / "base-model")
    theirs = save_peft_merge(dequantized, run.adapter, tmp_path / "theirs" / "base-model")
    overlay = run.overlay(tmp_path / "overlay")
    convert(run.base, tmp_path / "ours.gguf", overlay=overlay, naming=Naming(model_name="M"))
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(theirs, tmp_path / "theirs.gguf"))

    save_merged(run.open_base(), overlay, tmp_path / "saved", tokenizer=None)
    saved, expected = open_base_model(tmp_path / "saved"), open_base_model(theirs)
    assert (saved.made_plain_from, saved.quant_method) == (None, None)
    for tensor in expected.tensors:
        assert torch.equal(saved.read_tensor(tensor), expected.read_tensor(tensor)), tensor


def test_an_unmerged_base_stays_the_converter_s_where_it_knows_it(tmp_path: Path) -> None:
    """FP8 by upstream's own multiplication; NF4, which upstream refuses, as the plain weights."""
    plain = save_model("llama", tmp_path / "plain")
    base = fp8(plain, tmp_path / "base-model")
    convert(base, tmp_path / "ours.gguf", naming=Naming(model_name="M"))
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(base, tmp_path / "theirs.gguf"))
    base = nf4(plain, tmp_path / "nf4" / "base-model")
    convert(base, tmp_path / "ours.gguf", naming=Naming(model_name="M"))
    dequantized = without_quantization(base, plain, tmp_path / "dequantized" / "base-model")
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(dequantized, tmp_path / "theirs.gguf"))


def test_an_adapter_for_a_quantized_base_is_exported_as_for_the_plain_one(tmp_path: Path) -> None:
    plain = save_model("llama", tmp_path / "base-model")
    adapter = save_adapter(plain, tmp_path / "checkpoint-10")
    exported: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = []
    for base in (plain, nf4(plain, tmp_path / "nf4" / "base-model"), fp8(plain, tmp_path / "fp8" / "base-model")):
        model = open_base_model(base)
        out = tmp_path / f"{len(exported)}.gguf"
        export_lora(normalise_for_export(open_adapter(adapter), model), model, out, naming=Naming(model_name="A"))
        exported.append(read_gguf(out))
    for metadata, tensors in exported[1:]:
        assert metadata == exported[0][0]
        assert all(torch.equal(tensors[name], exported[0][1][name]) for name in exported[0][1])

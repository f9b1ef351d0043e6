"""What training changed and the converter would drop: refused by name, or told where it is left out on purpose."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import save_model, save_vision_model
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert, plan_conversion


def overlay_of(base: Path, directory: Path, auto_class: Any = AutoModelForCausalLM, **settings: Any) -> Overlay:
    """An overlay of an adapter whose every trained tensor is random."""
    torch.manual_seed(9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto_class.from_pretrained(base, dtype="auto")
        tuned = get_peft_model(model, LoraConfig(**({"r": 2, "lora_alpha": 4} | settings)))
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.05)
        tuned.save_pretrained(directory / "checkpoint-10")
    build_overlay(open_adapter(directory / "checkpoint-10"), open_base_model(base), directory / "o", precision="base")
    return Overlay.load(directory / "o")


def test_a_trained_head_that_gemma_files_have_no_place_for_is_refused(tmp_path: Path) -> None:
    """Upstream's Gemma drops ``lm_head``: the file would go on with the embedding, and nobody would know."""
    base = save_model("gemma2", tmp_path / "base", tie_word_embeddings=True)
    overlay = overlay_of(base, tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(PackagingError) as caught:
        convert(base, tmp_path / "out.gguf", overlay=overlay)
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert caught.value.fields["tensors"] == ["lm_head.weight"]
    assert "lm_head.weight" in caught.value.message
    assert not (tmp_path / "out.gguf").exists()


def test_a_trained_head_of_an_architecture_that_has_one_is_written(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", tie_word_embeddings=True)
    overlay = overlay_of(base, tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    _, plan = plan_conversion(open_base_model(base), overlay=overlay)
    assert "output.weight" in {tensor.name for tensor in plan.tensors}
    assert plan.notes == ()


def test_a_trained_vision_tower_is_left_out_and_told(tmp_path: Path) -> None:
    base = save_vision_model(tmp_path / "base")
    overlay = overlay_of(base, tmp_path, AutoModelForImageTextToText, target_modules=["q_proj"])
    touched = [name for name in overlay.names() if "vision_tower" in name]
    assert touched
    assert len(touched) < len(overlay.names())
    result = convert(base, tmp_path / "out.gguf", overlay=overlay)
    (note,) = result.notes
    assert "pictures" in note
    assert touched[0] in note


def test_a_model_without_adapter_may_leave_out_what_it_likes(tmp_path: Path) -> None:
    _, plan = plan_conversion(open_base_model(save_vision_model(tmp_path / "base")))
    assert plan.left_out
    assert plan.notes == ()


def test_tensors_that_a_sharding_trainer_did_not_gather_are_refused(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    """They would convert and not load."""
    base = tmp_path / "base"
    shutil.copytree(run_of("llama").base, base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(0, dtype=torch.bfloat16)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(PackagingError, match=r"layers\.0\.self_attn\.q_proj\.weight is empty") as caught:
        convert(base, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID
    assert "gather" in caught.value.remedy
    assert not (tmp_path / "out.gguf").exists()

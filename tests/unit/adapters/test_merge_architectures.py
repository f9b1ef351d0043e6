"""Merging through the overlay equals PEFT's merge, bit for bit, for every tensor of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, Gemma3Config, Qwen3VLMoeConfig

from tests.unit.adapters.peft_reference import changed, differences, overlay_merge, peft_merge, save_adapter, save_base
from tests.unit.adapters.tiny_models import MORE, TINY

# what `all-linear` may not name, since PEFT refuses it
_TARGETS = {"mamba": ["in_proj", "x_proj", "dt_proj"], "mamba2": ["in_proj"]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TINY)
def test_lora_on_all_linear_layers_equals_peft(
    name: str, dtype: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base(name, dtype)
    config = LoraConfig(r=4, lora_alpha=13, target_modules=_TARGETS.get(name, "all-linear"))
    adapter = save_adapter(base, config, tmp_path / "adapter")

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert len(changed(base, actual)) >= 6


@pytest.mark.parametrize("name", MORE)
def test_more_architectures_equal_peft(name: str, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base(name, "bfloat16")
    adapter = save_adapter(base, LoraConfig(r=4, target_modules=_TARGETS.get(name, "all-linear")), tmp_path / "adapter")

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert len(changed(base, actual)) >= 2


def test_experts_stored_with_their_axes_swapped(tmp_path: Path) -> None:
    """Qwen3-VL-MoE files hold experts (in, out), its modules (out, in)."""
    text = {**TINY["qwen3-moe"][1], "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
    }  # fmt: skip
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    base = save_base(config, tmp_path / "base", "bfloat16", auto=AutoModelForImageTextToText)
    lora = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    adapter = save_adapter(base, lora, tmp_path / "adapter", auto=AutoModelForImageTextToText)

    expected = peft_merge(base, adapter, tmp_path / "merged", auto=AutoModelForImageTextToText)
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert len(changed(base, actual)) == 6


def test_vision_language_model_whose_files_use_other_names_than_its_modules(tmp_path: Path) -> None:
    """transformers saves Gemma 3 as `language_model.model.*` and loads it as `model.language_model.*`."""
    config = Gemma3Config(
        text_config={
            "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    base = save_base(config, tmp_path / "base", "bfloat16", auto=AutoModelForImageTextToText)
    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    adapter = save_adapter(base, lora, tmp_path / "adapter", auto=AutoModelForImageTextToText)

    expected = peft_merge(base, adapter, tmp_path / "merged", auto=AutoModelForImageTextToText)
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert {name.split(".layers.")[1] for name in changed(base, actual)} == {
        f"{layer}.{module}.weight" for layer in (0, 1) for module in ("self_attn.q_proj", "mlp.down_proj")
    }

"""Every setting of a LoRA adapter that changes the merge: equal to PEFT's merge, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.unit.adapters.peft_reference import changed, differences, overlay_merge, peft_merge, save_adapter

_SOME = ["q_proj", "v_proj", "up_proj"]
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

# case -> (architecture, settings, how many tensors change)
FEATURES: dict[str, tuple[str, dict[str, Any], int]] = {
    "rslora": ("llama", {"target_modules": _SOME, "use_rslora": True}, 6),
    "rank_pattern": ("llama", {"target_modules": _SOME, "rank_pattern": {"0.self_attn.q_proj": 6, "v_proj": 2}}, 6),
    "alpha_pattern": ("llama", {"target_modules": _SOME, "alpha_pattern": {"v_proj": 32, r"layers\.1\..*": 5}}, 6),
    "alpha_pattern, first match wins": (
        "llama",
        {"target_modules": _SOME, "alpha_pattern": {"q_proj": 32, "layers.0.self_attn.q_proj": 64, ".*": 3}},
        6,
    ),
    "rslora, rank_pattern and alpha_pattern": (
        "llama",
        {"target_modules": _SOME, "use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"up_proj": 7}},
        6,
    ),
    "layers_to_transform": ("llama", {"target_modules": _SOME, "layers_to_transform": [1]}, 3),
    "dora": ("llama", {"target_modules": _SOME, "use_dora": True}, 6),
    "dora with rslora": ("llama", {"target_modules": _SOME, "use_dora": True, "use_rslora": True}, 6),
    "dora on an embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}, 3),
    "fan_in_fan_out": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, 8),
    "fan_in_fan_out not said": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}, 6),
    "fan_in_fan_out with dora": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
        6,
    ),
    "bias all": ("qwen2", {"target_modules": ["q_proj", "up_proj"], "bias": "all"}, 10),
    "bias all, many biases": ("starcoder2", {"target_modules": ["q_proj"], "bias": "all"}, 19),
    "bias all, modules_to_save with a bias": (
        "gpt-neox",
        {"target_modules": ["dense"], "bias": "all", "modules_to_save": ["input_layernorm"]},
        17,
    ),
    "bias lora_only": ("qwen2", {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}, 6),
    "lora_bias": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True, "use_rslora": True}, 8),
    "modules_to_save head": ("llama", {"target_modules": _SOME, "modules_to_save": ["lm_head"]}, 7),
    "modules_to_save both": ("llama", {"target_modules": _SOME, "modules_to_save": ["lm_head", "embed_tokens"]}, 8),
    "modules_to_save norms": ("llama", {"target_modules": _SOME, "modules_to_save": ["input_layernorm", "norm"]}, 11),
    "lora on embedding and head": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, 4),
    "token indices": ("llama", {"target_modules": _SOME, "trainable_token_indices": [3, 7, 90]}, 7),
    "token indices by module": (
        "llama",
        {"target_modules": _SOME, "trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [1]}},
        8,
    ),
    "target_parameters": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}, 26),
    "target_parameters, one of two": ("mixtral", {"target_modules": [], "target_parameters": _EXPERTS[1:]}, 8),
    "target_parameters, router": (
        "qwen3-moe",
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "gate.weight"], "use_rslora": True},
        18,
    ),
    "target_parameters, experts stored (in, out)": (
        "gpt-oss",
        {"target_modules": ["q_proj"], "target_parameters": _EXPERTS},
        6,
    ),
    "modules_to_save router": ("mixtral", {"target_modules": ["q_proj"], "modules_to_save": ["gate"]}, 4),
    "modules_to_save experts": ("mixtral", {"target_modules": ["q_proj"], "modules_to_save": ["experts"]}, 26),
    "dora on parts of a fused tensor": ("hrm", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}, 8),
    "orthogonal initialisation": ("llama", {"target_modules": _SOME, "init_lora_weights": "orthogonal"}, 6),
    "mica": ("llama", {"target_modules": _SOME, "init_lora_weights": "mica"}, 6),
    "pissa": ("llama", {"target_modules": _SOME, "init_lora_weights": "pissa"}, 6),
    "pissa on the head": ("llama", {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": "pissa"}, 3),
    "olora": ("llama", {"target_modules": _SOME, "init_lora_weights": "olora"}, 6),
    "olora on the head": ("llama", {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": "olora"}, 3),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", FEATURES)
def test_feature_equals_peft(case: str, dtype: str, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    architecture, settings, count = FEATURES[case]
    base = tiny_base(architecture, dtype)
    adapter = save_adapter(base, LoraConfig(r=4, lora_alpha=13, **settings), tmp_path / "adapter")

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert len(changed(base, actual)) == count


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_adapter_stored_in_another_dtype_is_widened_as_peft_does(
    stored: torch.dtype, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("llama", "bfloat16")
    adapter = save_adapter(base, LoraConfig(r=4, target_modules=_SOME, use_dora=True), tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    save_file({name: value.to(stored) for name, value in load_file(weights).items()}, weights)

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.w", "lora_B.default.w"),
        lambda name: "module." + name,
        lambda name: name.replace("base_model.model.", "base_model.model.module."),
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model.language_model.model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model.model.language_model."),
    ],
)
def test_prefixes_that_trainers_leave_do_not_matter(
    rename: Callable[..., Any], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("llama")
    adapter = save_adapter(base, LoraConfig(r=4, target_modules=_SOME), tmp_path / "adapter")
    expected = overlay_merge(base, adapter, tmp_path / "plain.safetensors")
    weights = adapter / "adapter_model.safetensors"
    renamed = {rename(name): value for name, value in load_file(weights).items()}
    assert renamed.keys() != load_file(weights).keys()
    save_file(renamed, weights)

    assert differences(expected, overlay_merge(base, adapter, tmp_path / "renamed.safetensors")) == []


def test_adapter_of_transformers_4_with_one_lora_per_expert(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """Keys `experts.0.w1`; PEFT today stacks them into the fused parameters and merges there."""
    base = tiny_base("mixtral", "bfloat16")
    adapter = save_adapter(base, LoraConfig(r=4, lora_alpha=13, target_modules=["q_proj"]), tmp_path / "adapter")
    torch.manual_seed(3)
    tensors = {}
    for layer in (0, 1):
        path = f"base_model.model.model.layers.{layer}.block_sparse_moe"
        for expert in range(4):
            for name, (out, width) in {"w1": (48, 32), "w2": (32, 48), "w3": (48, 32)}.items():
                tensors[f"{path}.experts.{expert}.{name}.lora_A.weight"] = torch.randn(4, width)
                tensors[f"{path}.experts.{expert}.{name}.lora_B.weight"] = torch.randn(out, 4)
        tensors[f"{path}.gate.lora_A.weight"] = torch.randn(4, 32)
        tensors[f"{path}.gate.lora_B.weight"] = torch.randn(4, 4)
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["w1", "w2", "w3", "gate"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert len(changed(base, actual)) == 2 * (4 * 3 + 1)

"""PEFT's other methods, merged module by module: equal to a merge of the whole model, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.peft_reference import changed, differences, overlay_merge, peft_merge, quietly, save_adapter
from worker.models.adapters import build_overlay, open_adapter
from worker.models.adapters.through_peft import MERGED_BY_PEFT
from worker.models.checkpoint import open_base_model

_SOME = ["q_proj", "v_proj", "up_proj"]

# method -> (architecture, config class, settings)
METHODS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "ADALORA": ("llama", peft.AdaLoraConfig, {"init_r": 4, "target_modules": _SOME, "total_step": 10}),
    "BEFT": ("qwen2", peft.BeftConfig, {"target_modules": ["q_proj"]}),
    "C3A": ("llama", peft.C3AConfig, {"target_modules": _SOME, "block_size": 4}),
    "DEFT": ("llama", peft.DeftConfig, {"target_modules": _SOME}),
    "DELORA": ("llama", peft.DeloraConfig, {"target_modules": _SOME, "r": 4}),
    "FOURIERFT": ("llama", peft.FourierFTConfig, {"target_modules": _SOME, "n_frequency": 20}),
    "GLORA": ("llama", peft.GloraConfig, {"target_modules": _SOME}),
    "GRALORA": ("llama", peft.GraloraConfig, {"target_modules": _SOME, "r": 4, "gralora_k": 2}),
    "HIRA": ("llama", peft.HiraConfig, {"target_modules": _SOME}),
    "HRA": ("llama", peft.HRAConfig, {"target_modules": _SOME, "r": 4}),
    "IA3": (
        "gpt2",
        peft.IA3Config,
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "IA3, feedforward by a pattern": (
        "llama",
        peft.IA3Config,
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": r".*\.mlp\.(down|up)_proj"},
    ),
    "LN_TUNING": ("llama", peft.LNTuningConfig, {"target_modules": ["input_layernorm", "norm"]}),
    "LOHA": ("llama", peft.LoHaConfig, {"target_modules": _SOME, "r": 4}),
    "LOKR": ("llama", peft.LoKrConfig, {"target_modules": _SOME, "r": 4, "rank_pattern": {"q_proj": 2}}),
    "MISS": ("llama", peft.MissConfig, {"target_modules": _SOME, "r": 4}),
    "OFT": ("qwen2", peft.OFTConfig, {"target_modules": _SOME, "oft_block_size": 4, "modules_to_save": ["lm_head"]}),
    "OSF": ("llama", peft.OSFConfig, {"target_modules": _SOME}),
    "PSOFT": ("llama", peft.PsoftConfig, {"target_modules": _SOME, "r": 4}),
    "PVERA": ("llama", peft.PveraConfig, {"target_modules": _SOME}),
    "PVERA, transposed": ("gpt2", peft.PveraConfig, {"target_modules": ["c_attn", "c_fc"]}),
    "RANDLORA": ("llama", peft.RandLoraConfig, {"target_modules": _SOME, "r": 4}),
    "ROAD": ("llama", peft.RoadConfig, {"target_modules": _SOME, "group_size": 4}),
    "SHIRA": ("llama", peft.ShiraConfig, {"target_modules": _SOME, "r": 4}),
    "TRAINABLE_TOKENS": (
        "llama",
        peft.TrainableTokensConfig,
        {"target_modules": ["embed_tokens"], "token_indices": [3, 7]},
    ),
    "TRAINABLE_TOKENS, tied": (
        "llama-tied",
        peft.TrainableTokensConfig,
        {"target_modules": ["embed_tokens"], "token_indices": [3, 7]},
    ),
    "VBLORA": (
        "llama",
        peft.VBLoRAConfig,
        {"target_modules": _SOME, "r": 4, "num_vectors": 8, "vector_length": 4, "topk": 2},
    ),
    "VERA": ("llama", peft.VeraConfig, {"target_modules": _SOME, "r": 4}),
    "VERA, projections from the seed": (
        "llama",
        peft.VeraConfig,
        {"target_modules": _SOME, "r": 4, "save_projection": False},
    ),
    "WAVEFT": ("llama", peft.WaveFTConfig, {"target_modules": _SOME, "n_frequency": 20}),
}


@pytest.mark.parametrize("case", METHODS)
def test_method_equals_peft(case: str, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    architecture, config_class, settings = METHODS[case]
    base = tiny_base(architecture, "bfloat16")
    adapter = save_adapter(base, quietly(config_class)(**settings), tmp_path / "adapter")

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert changed(base, actual)


def test_every_method_that_is_accepted_is_tried() -> None:
    assert {case.split(",")[0] for case in METHODS} == MERGED_BY_PEFT


def test_bias_that_is_made_of_the_weight_is_refused(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base("qwen2")
    adapter = save_adapter(base, peft.GloraConfig(target_modules=["q_proj"]), tmp_path / "adapter")

    with pytest.raises(PackagingError, match=r"GLORA on .*q_proj, whose bias") as caught:
        build_overlay(open_adapter(adapter), open_base_model(base), tmp_path / "overlay", precision="base")

    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED


def test_setting_that_peft_would_drop_is_refused_by_name(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base("llama")
    adapter = save_adapter(base, peft.LoHaConfig(target_modules=_SOME), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_something_new": True}))

    with pytest.raises(PackagingError, match="use_something_new") as caught:
        build_overlay(open_adapter(adapter), open_base_model(base), tmp_path / "overlay", precision="base")

    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert caught.value.fields == {"feature": "use_something_new"}


def test_method_without_a_merge_is_refused_by_name(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base("llama")
    adapter = save_adapter(base, peft.LilyConfig(target_modules=_SOME), tmp_path / "adapter")

    with pytest.raises(PackagingError, match="LILY") as caught:
        build_overlay(open_adapter(adapter), open_base_model(base), tmp_path / "overlay", precision="base")

    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert caught.value.fields == {"feature": "LILY"}

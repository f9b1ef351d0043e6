"""Adapters as pairs for a LoRA file: added as llama.cpp adds them, they give the merged weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from tests.unit.adapters.peft_reference import overlay_merge, save_adapter
from worker.models.adapters import normalise_for_export, open_adapter
from worker.models.checkpoint import open_base_model

_SOME = ["q_proj", "v_proj", "up_proj"]


@pytest.mark.parametrize(
    ("architecture", "settings", "count"),
    [
        ("llama", {"target_modules": _SOME}, 6),
        ("llama", {"target_modules": _SOME, "use_rslora": True}, 6),
        ("llama", {"target_modules": _SOME, "alpha_pattern": {"v_proj": 3}, "rank_pattern": {"q_proj": 2}}, 6),
        ("llama", {"target_modules": ["embed_tokens", "lm_head"]}, 2),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"]}, 6),
        ("mixtral", {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}, 24),
        ("gpt-oss", {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]}, 2),
    ],
)
def test_pairs_added_at_run_time_give_the_merged_weights(
    architecture: str, settings: dict[str, Any], count: int, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base(architecture)
    adapter = save_adapter(base, LoraConfig(r=4, lora_alpha=13, **settings), tmp_path / "adapter")
    merged = overlay_merge(base, adapter, tmp_path / "overlay", precision="f32")
    model = open_base_model(base)

    pairs = normalise_for_export(open_adapter(adapter), model)

    assert len(pairs) == count
    for one in pairs:
        delta = one.alpha / one.r * (one.b @ one.a)
        actual = model.read_tensor(one.name) + (delta.transpose(-1, -2) if one.transposed else delta)
        assert one.alpha == 13
        assert one.r == one.a.shape[-2] == one.b.shape[-1]
        torch.testing.assert_close(actual, merged[one.name], rtol=1e-5, atol=1e-6)


def test_b_is_untouched_where_alpha_over_r_says_it_all(tmp_path: Path) -> None:
    base = open_base_model(write_base(tmp_path / "base", {f"{Q}.weight": torch.zeros(2, 2)}))
    plain = write_adapter(tmp_path / "plain", pair(Q, [[1, 2]], [[3], [4]]), lora_alpha=8)
    folded = write_adapter(
        tmp_path / "folded", pair(Q, [[1, 2]], [[3], [4]]), lora_alpha=8, alpha_pattern={"q_proj": 16}
    )

    (one,) = normalise_for_export(open_adapter(plain), base)
    (two,) = normalise_for_export(open_adapter(folded), base)

    assert (one.alpha, one.b.tolist()) == (8, [[3], [4]])
    assert (two.alpha, two.b.tolist()) == (8, [[6], [8]])


def test_alpha_zero_is_folded_too(tmp_path: Path) -> None:
    """llama.cpp reads alpha 0 as "no scaling", PEFT as "no effect"."""
    base = open_base_model(write_base(tmp_path / "base", {f"{Q}.weight": torch.zeros(2, 2)}))
    adapter = write_adapter(tmp_path / "adapter", pair(Q, [[1, 2]], [[3], [4]]), lora_alpha=0)

    (one,) = normalise_for_export(open_adapter(adapter), base)

    assert one.alpha > 0
    assert one.b.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("architecture", "config", "feature"),
    [
        ("llama", LoraConfig(target_modules=_SOME, use_dora=True), "DoRA"),
        ("llama", LoraConfig(target_modules=_SOME, modules_to_save=["lm_head"]), "modules_to_save"),
        ("llama", LoraConfig(target_modules=_SOME, trainable_token_indices=[1]), "token rows"),
        ("qwen2", LoraConfig(target_modules=["q_proj"], lora_bias=True), "lora_bias"),
        ("qwen2", LoraConfig(target_modules=["q_proj"], bias="all"), "biases"),
        ("llama", LoraConfig(target_modules=_SOME, init_lora_weights="pissa"), "pissa"),
        ("llama-tied", LoraConfig(target_modules=["lm_head"]), "tied"),
        ("llama-tied", LoraConfig(target_modules=["embed_tokens"]), "tied"),
        ("llama", LoHaConfig(target_modules=_SOME), "LOHA"),
    ],
)
def test_what_a_lora_file_cannot_hold_is_named(
    architecture: str, config: LoHaConfig | LoraConfig, feature: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base(architecture)
    adapter = save_adapter(base, config, tmp_path / "adapter")

    with pytest.raises(PackagingError) as caught:
        normalise_for_export(open_adapter(adapter), open_base_model(base))

    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert feature in caught.value.message
    assert "merge_quantize" in caught.value.remedy

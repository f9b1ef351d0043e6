"""One model, its config as the Hub has it and as transformers 5 saves it: the same file, and llama.cpp loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from api_client.contract.errors import PackagingError
from tests.field.vocabularies import BPE_TOKENS, FAMILIES
from worker.models.convert.pipeline import convert
from worker.models.convert.repairs import completed, repaired
from worker.models.verify.ask import Question
from worker.models.verify.load import generate

GEMMA4_TOKENS = 361
_COMMON = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GEMMA4 = {
    **_COMMON, "vocab_size": GEMMA4_TOKENS, "vocab_size_per_layer_input": GEMMA4_TOKENS,
    "hidden_size_per_layer_input": 16, "num_hidden_layers": 2,
    "head_dim": 16, "global_head_dim": 32, "num_kv_shared_layers": 0, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
_MAMBA = {"mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1}
_NEMOTRON = {
    **_COMMON, "vocab_size": BPE_TOKENS, "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16,
    "ssm_state_size": 16, "n_groups": 1,
}  # fmt: skip
_EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
}  # fmt: skip

# name -> (model type, settings as the Hub's config has them, keys of transformers' own that the Hub's lacks)
HUB: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "gemma4": ("gemma4_text", _GEMMA4, ("per_layer_config",)),
    "gemma4-k-eq-v": (
        "gemma4_text",
        {**_GEMMA4, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        ("per_layer_config",),
    ),
    "gemma4-one-head-size": ("gemma4_text", {**_GEMMA4, "global_head_dim": 16}, ("per_layer_config",)),
    "granite4": (
        "granitemoehybrid",
        {**_COMMON, **_MAMBA, "num_hidden_layers": 2, "shared_intermediate_size": 48, "num_local_experts": 4,
         "num_experts_per_tok": 2, "position_embedding_type": "rope", "layer_types": ["mamba", "attention"]},
        (),
    ),
    "granite4-dense": (
        "granitemoehybrid",
        {**_COMMON, "intermediate_size": 48, "num_hidden_layers": 2, "shared_intermediate_size": 48,
         "num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "rope",
         "layer_types": ["attention", "attention"]},
        (),
    ),
    "nemotron-h": (
        "nemotron_h", {**_NEMOTRON, "hybrid_override_pattern": "M*-", "num_hidden_layers": 3},
        ("layers_block_type", "n_routed_experts", "num_experts_per_tok"),
    ),
    "nemotron-h-experts": (
        "nemotron_h", {**_NEMOTRON, **_EXPERTS, "hybrid_override_pattern": "M*E", "num_hidden_layers": 3},
        ("layers_block_type",),
    ),
    "nemotron-h-experts-by-name": (
        "nemotron_h",
        {**_NEMOTRON, **_EXPERTS, "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": 3},
        (),
    ),
}  # fmt: skip


def _save(directory: Path, model_type: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A random model as transformers saves it; its config."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings))
    model.to(torch.float32).save_pretrained(directory)
    family = {"gemma4_text": "gemma4", "nemotron_h": "gpt2"}.get(model_type, "llama")
    assert FAMILIES[family](directory) == settings["vocab_size"]
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def _with_config(base: Path, directory: Path, config: dict[str, Any]) -> Path:
    shutil.copytree(base, directory)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", HUB)
def test_a_config_of_the_hub_and_one_saved_by_transformers_5_make_the_same_file(tmp_path: Path, name: str) -> None:
    model_type, settings, own_keys = HUB[name]
    saved = _save(tmp_path / "saved" / "model", model_type, settings)
    hub = {key: value for key, value in saved.items() if key not in own_keys} | settings
    of_hub = _with_config(tmp_path / "saved" / "model", tmp_path / "hub" / "model", hub)
    assert hub != saved
    ours = [tmp_path / "saved.gguf", tmp_path / "hub.gguf"]
    for directory, out in zip((tmp_path / "saved" / "model", of_hub), ours, strict=True):
        convert(directory, out, gguf_dtype="f32")
    assert ours[0].read_bytes() == ours[1].read_bytes()
    assert generate(Question(str(ours[0]))) is not None


def _parsed(**keys: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model_type": "x", **keys}


@pytest.mark.parametrize(
    ("parsed", "raw", "whole"),
    [
        (_parsed(a=1), {"a": 2, "b": 3}, {"a": 1, "b": 3}),
        (_parsed(a=None), {"a": 2}, {"a": 2}),
        (_parsed(a=1), {"a": None, "b": None}, {"a": 1}),
        (_parsed(part={"a": 1}), {"part": {"b": 2}}, {"part": {"a": 1, "b": 2}}),
        (_parsed(kinds=["full_attention"]), {"kinds": ["attention", "mtp"]}, {"kinds": ["attention", "mtp"]}),
        (_parsed(part={"a": 1}), {"part": "text"}, {"part": {"a": 1}}),
    ],
    ids=["fills", "fills what is null", "adds no null", "deep", "names are the file's", "never replaces a part"],
)
def test_what_transformers_drops_is_put_back(
    parsed: Callable[[], dict[str, Any]], raw: dict[str, Any], whole: dict[str, Any]
) -> None:
    assert completed(parsed(), raw) == {"model_type": "x", **whole}


def test_repairs_reach_the_text_part_of_a_larger_model() -> None:
    text = {
        "model_type": "gemma4_text", "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"],
        "per_layer_config": {"1": {"head_dim": 32, "num_key_value_heads": 1}},
    }  # fmt: skip
    outer = repaired({"model_type": "gemma4", "text_config": text})
    assert outer["text_config"]["global_head_dim"] == 32
    assert outer["text_config"]["num_global_key_value_heads"] == 1


_MIMO = {
    "model_type": "mimo_v2_flash", "layer_types": ["full_attention", "sliding_attention"], "head_dim": 16,
    "v_head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
_KIMI = {"model_type": "kimi_linear", "layer_types": ["linear_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ({"model_type": "cohere2", "rope_parameters": {"rope_theta": 1e4}}, "rotary_pct", 1.0),
        ({"model_type": "cohere2", "rotary_pct": 0.5}, "rotary_pct", 0.5),
        (
            {"model_type": "minimax_m2", "head_dim": 8, "rope_parameters": {"partial_rotary_factor": 0.5}},
            "rotary_dim",
            4,
        ),
        ({"model_type": "t5", "pad_token_id": 0}, "decoder_start_token_id", 0),
        ({"model_type": "t5", "decoder_start_token_id": 3}, "decoder_start_token_id", 3),
        ({"model_type": "modernbert", "norm_eps": 1e-6}, "layer_norm_eps", 1e-6),
        ({"model_type": "minimax_m2"}, "scoring_func", "sigmoid"),
        ({"model_type": "exaone_moe", "scoring_func": "softmax"}, "scoring_func", "softmax"),
        ({"model_type": "deepseek_v3"}, "scoring_func", "sigmoid"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "scoring_func", "softmax"),
        ({"model_type": "glm4_moe_lite"}, "scoring_func", "sigmoid"),
        ({"model_type": "glm", "max_position_embeddings": 131072}, "seq_length", 131072),
        ({"model_type": "glm", "rms_norm_eps": 1.5625e-07}, "layernorm_epsilon", 1.5625e-07),
        ({"model_type": "glm", "seq_length": 8, "max_position_embeddings": 16}, "seq_length", 8),
        ({"model_type": "dots1", "scoring_func": "noaux_tc"}, "scoring_func", "sigmoid"),
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
            "full_attention_interval",
            2,
        ),
        ({"model_type": "glm4_moe_lite", "mlp_layer_types": ["dense", "sparse"]}, "first_k_dense_replace", 1),
        (
            {"model_type": "glm4_moe_lite", "mlp_layer_types": ["dense"], "first_k_dense_replace": 3},
            "first_k_dense_replace",
            3,
        ),
        (
            {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 2, "intermediate_size": 96},
            "moe_intermediate_size",
            [96, 96],
        ),
        (
            {
                "model_type": "hunyuan_v1_moe",
                "num_hidden_layers": 2,
                "intermediate_size": 9,
                "moe_intermediate_size": [8, 8],
            },
            "moe_intermediate_size",
            [8, 8],
        ),
        ({"model_type": "gemma4_unified_text"}, "moe_intermediate_size", None),
        (_MIMO, "hybrid_layer_pattern", [0, 1]),
        (_MIMO, "swa_num_key_value_heads", 4),
        ({**_MIMO, "swa_num_key_value_heads": 8}, "swa_num_key_value_heads", 8),
        (
            _KIMI | {"linear_head_dim": 16},
            "linear_attn_config",
            {
                "full_attn_layers": [2],
                "kda_layers": [1],
                "head_dim": 16,
                "num_heads": None,
                "short_conv_kernel_size": None,
            },
        ),
        (_KIMI | {"linear_attn_config": {"full_attn_layers": [1]}}, "linear_attn_config", {"full_attn_layers": [1]}),
        ({"model_type": "step3p5", "n_routed_experts": 4}, "moe_num_experts", 4),
        (
            {"model_type": "step3p5", "layer_types": ["full_attention", "sliding_attention"]},
            "partial_rotary_factors",
            [0.5, 1.0],
        ),
        ({"model_type": "step3p5", "mlp_layer_types": ["dense", "sparse", "sparse"]}, "moe_layers_enum", "1,2"),
        ({"model_type": "deepseek_v4", "mlp_layer_types": ["hash_moe", "moe"]}, "num_hash_layers", 1),
        (
            {"model_type": "deepseek_v4", "compress_rates": {"a": 4}, "layer_types": ["a", "sliding_attention"]},
            "compress_ratios",
            [4, 0],
        ),
        ({"model_type": "nomic_bert", "hidden_size": 64, "max_position_embeddings": 2048}, "n_positions", 8192),
        ({"model_type": "nomic_bert", "n_embd": 64, "n_positions": 512}, "n_positions", 512),
    ],
)
def test_keys_that_transformers_5_says_otherwise_are_said_again(config: dict[str, Any], key: str, value: float) -> None:
    assert repaired(config)[key] == value


def test_a_rotation_that_llama_cpp_has_built_in_otherwise_is_refused_by_its_key() -> None:
    """transformers rotates all of a layer whose part is not said."""
    said = {kind: {"rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
    with pytest.raises(PackagingError, match="rope_parameters has partial_rotary_factor"):
        repaired({"model_type": "step3p5", "layer_types": list(said), "rope_parameters": said})

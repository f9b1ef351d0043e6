"""Configs of the architectures under test, two layers and a few dozen channels each."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_HEAD8 = {**_GROUPED, "head_dim": 8}
_MLA = {
    **_COMMON,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

# name -> (model type, settings)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "llama-tied": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("mistral", _GROUPED),
    "mixtral": ("mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _HEAD8),
    "qwen3-moe": (
        "qwen3_moe",
        {**_HEAD8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    ),
    "gemma2": ("gemma2", _HEAD8),
    "gemma3-text": ("gemma3_text", _HEAD8),
    "phi3": ("phi3", _GROUPED),
    "gpt2": ("gpt2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "falcon": ("falcon", {**_COMMON, "new_decoder_architecture": False, "multi_query": True, "bias": False}),
    "glm4": ("glm4", _HEAD8),
    "deepseek-v2": ("deepseek_v2", _MLA),
    "deepseek-v3": ("deepseek_v3", _MLA),
    "olmo2": ("olmo2", _GROUPED),
    "granite": ("granite", _GROUPED),
    "cohere": ("cohere", _GROUPED),
    "starcoder2": ("starcoder2", _GROUPED),
    "gpt-oss": ("gpt_oss", {**_HEAD8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": (
        "mamba",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    ),
}


_FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SMALL = {"vocab_size": 96, "hidden_size": 32}

# more architectures, each of them merged in one dtype only
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {**_SMALL, "n_layer": 2, "n_head": 4}),
    "ernie4.5-moe": (
        "ernie4_5_moe",
        {**_GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 0},
    ),
    "exaone4": ("exaone4", _GROUPED),
    "gemma": ("gemma", _HEAD8),
    "glm4-moe": (
        "glm4_moe",
        {**_HEAD8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1},
    ),
    "gpt-neox": ("gpt_neox", _COMMON),
    "gptj": ("gptj", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, **_COMMON}),
    "granitemoe": ("granitemoe", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "hrm": ("hrm_text", _GROUPED),
    "hunyuan-moe": ("hunyuan_v1_moe", {**_HEAD8, "num_experts": 4, "moe_topk": 2}),
    "lfm2": ("lfm2", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
    "llama4": ("llama4_text", {**_HEAD8, "num_local_experts": 4, "intermediate_size_mlp": 40}),
    "mamba2": (
        "mamba2",
        {**_SMALL, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    ),
    "minimax": ("minimax", {**_HEAD8, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8}),
    "mpt": ("mpt", {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "nemotron": ("nemotron", _GROUPED),
    "olmoe": ("olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "phi": ("phi", _COMMON),
    "phimoe": ("phimoe", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": ("qwen2_moe", {**_GROUPED, **_FEW_EXPERTS, "shared_expert_intermediate_size": 20}),
    "qwen3-next": (
        "qwen3_next",
        {
            **_HEAD8,
            **_FEW_EXPERTS,
            "shared_expert_intermediate_size": 20,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "smollm3": ("smollm3", _GROUPED),
    "stablelm": ("stablelm", _GROUPED),
}


def tiny_config(name: str) -> PretrainedConfig:
    model_type, settings = (TINY | MORE)[name]
    return CONFIG_MAPPING[model_type](**settings)

"""The smallest model of every architecture that the conversion package knows and transformers can build.

Sizes follow from the names of a config's keys, so a new architecture needs no entry here; ``OWN`` holds what is left.
"""

from __future__ import annotations

import shutil
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from api_client.contract.errors import ErrorCode, PackagingError
from tests.field.vocabularies import FAMILIES
from worker.models.convert.pipeline import ConvertResult, convert
from worker.models.convert.upstream import supported_architectures

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "text_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size"), 256),
    "intermediate_size_mlp": 256,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "kv_channels", "v_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "ffn_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k", "moe_top_k", "top_k_experts", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("num_experts_per_token",), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 256),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size"), 256),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_kv_shared_layers"), 0),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("linear_num_key_heads", "qk_rope_head_dim", "time_step_rank", "mamba_dt_rank"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "kv_lora_rank", "o_lora_rank"), 16),
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "q_lora_rank": 24, "sliding_window": 16,
    "hidden_size_per_layer_input": 16, "query_pre_attn_scalar": 16, "embed_dim": 64,
    "global_head_dim": 32, "attention_hidden_size": 64, "rotary_dim": 8,
    "decoder_start_token_id": 0, "n_groups": 1, "conv_kernel": 4, "index_head_dim": 16, "index_n_heads": 2,
    "image_size": 28, "patch_size": 14, "laurel_rank": 64, "altup_num_inputs": 2, "mamba_d_ssm": 64,
}  # fmt: skip
_VOCABULARY_KEYS = ("vocab_size", "vocab_size_per_layer_input", "padded_vocab_size")
_USUAL_FAMILIES = ("llama", "gpt2", "gemma4", "t5", "xlm-roberta")
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2}

MOST_PARAMETERS = 40_000_000

# by class of the config; what the names of its keys do not say
_MROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MLA = {"num_key_value_heads": 4, "head_dim": 8}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"]}
OWN: dict[str, dict[str, Any]] = {
    **{name: {"rope_parameters": {**_MROPE, "mrope_section": [4, 2, 2]}} for name in (
        "Qwen2VLTextConfig", "Qwen2_5_VLTextConfig", "Qwen3VLTextConfig", "Qwen3VLMoeTextConfig", "PaddleOCRTextConfig",
    )},
    **{name: {"rope_parameters": {**_MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}} for name in (
        "Glm4vTextConfig", "Glm4vMoeTextConfig", "GlmOcrTextConfig",
    )},
    **{name: {**_LINEAR, "head_dim": 32, "rope_parameters": {
        **_MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25, "mrope_interleaved": True,
    }} for name in ("Qwen3_5TextConfig", "Qwen3_5MoeTextConfig")},
    "Qwen3NextConfig": _LINEAR, "Qwen3MoeConfig": {"norm_topk_prob": True},  # as the Hub has it, and llama.cpp
    "Gemma4TextConfig": _WINDOWED, "Gemma4UnifiedTextConfig": _WINDOWED,
    # llama.cpp has one base for both kinds of layers
    "MellumConfig": {**_WINDOWED, "rope_parameters": {
        "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
                           "original_max_position_embeddings": 128},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
    "AfmoeConfig": {"mup_enabled": True},
    "CamembertConfig": {"max_position_embeddings": 514, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "NomicBertConfig": {"max_position_embeddings": 2048},
    "KimiLinearConfig": {**_LINEAR, **_MLA, "linear_num_heads": 4, "linear_head_dim": 16},
    "MiMoV2FlashConfig": {
        "layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}
                            for kind, theta in (("full_attention", 5e6), ("sliding_attention", 1e4))},
    },
    "Step3p7TextConfig": {**_WINDOWED, "sliding_window": 16, "rope_parameters": {
        "full_attention": {**_MROPE, "partial_rotary_factor": 0.5}, "sliding_attention": _MROPE}},
    "Gemma3TextConfig": {"num_hidden_layers": 6}, "Llama4TextConfig": {"num_hidden_layers": 4},
    "BitNetConfig": {"tie_word_embeddings": True},
    "Ernie4_5_MoeConfig": {"intermediate_size": 1024},
    "OlmoeConfig": {"num_key_value_heads": 4}, "PhiConfig": {"num_key_value_heads": 4},
    "DeepseekV2Config": {**_MLA, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "YoutuConfig": _MLA, "MiniCPM3Config": _MLA,
    **{name: {"deepstack_visual_indexes": [0]} for name in ("Qwen3VLVisionConfig", "Qwen3VLMoeVisionConfig")},
    "Dots1Config": {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "HunYuanVLTextConfig": {"rope_parameters": {**_MROPE, "xdrope_section": [2, 2, 2, 2]}},
    "ApertusConfig": {"head_dim": None},
    **{name: {**_MLA, "n_group": 1, "topk_group": 1} for name in (
        "DeepseekV3Config", "DeepseekV32Config", "Glm4MoeLiteConfig", "GlmMoeDsaConfig",
    )},
    "MambaConfig": {"intermediate_size": 128, "time_step_rank": 4},
    "FalconMambaConfig": {"intermediate_size": 128, "time_step_rank": 4},
    "HunYuanDenseV1Config": {"head_dim": 16},
    "HunYuanMoEV1Config": {"head_dim": 16},
    "NemotronConfig": {"head_dim": 16, "num_key_value_heads": 2},
    "BambaConfig": {**_MAMBA, "attn_layer_indices": [1]},
    "DbrxConfig": {"ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
                   "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "FalconH1Config": {"mamba_d_ssm": 128, "head_dim": 16, **_MAMBA},
    "FalconConfig": {"multi_query": True, "new_decoder_architecture": False, "num_kv_heads": None},
    "Gemma3nTextConfig": {"altup_num_inputs": 4, "hidden_size_per_layer_input": 256, "intermediate_size": [256, 256],
                          "activation_sparsity_pattern": [0.95, 0.95], **_WINDOWED},
    "GraniteMoeHybridConfig": {**_MAMBA, "intermediate_size": 48, "shared_intermediate_size": 48,
                               "layer_types": ["mamba", "attention"], "position_embedding_type": "rope"},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                    "expert_layer_offset": 1},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Mamba2Config": {"num_heads": 8, "head_dim": 16},
    "NemotronHConfig": {"layers_block_type": ["mamba", "attention", "moe"]},
    "XLMRobertaConfig": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 514},
    "RobertaConfig": {"max_position_embeddings": 514},
    "MptConfig": {"expansion_ratio": 2},
}  # fmt: skip
# what must be said to be none; a None in OWN takes away what a key's name would say
NULL: dict[str, dict[str, Any]] = {
    "Exaone4Config": {"sliding_window": None, "layer_types": ["full_attention", "full_attention"]},
    "MistralConfig": {"sliding_window": None},  # as since 0.2; a window has no place in the file, which is told
}
# by architecture, where one config serves several
OF_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "Gemma3TextModel": {"use_bidirectional_attention": True, "query_pre_attn_scalar": _SIZES["head_dim"]},
    "ModernBertForSequenceClassification": {"classifier_pooling": "mean"},
}
_OTHER_TOKENIZER = {ErrorCode.TOKENIZER_UNSUPPORTED, ErrorCode.TOKENIZER_NOT_FOUND, ErrorCode.VOCABULARY_MISMATCH}
# the family of the tokenizer, where it is not told by trying
_FAMILIES = {
    "bert": ("bert",), "nomic_bert": ("bert",), "roberta": ("gpt2",), "xlm-roberta": ("xlm-roberta",), "t5": ("t5",),
    "umt5": ("t5",),
    "gemma4": ("gemma4",), "gemma4_text": ("gemma4",), "modernbert": ("gpt2-ends",),
    "deepseek_v32": ("gpt2-bos",), "jamba": ("llama",),
}  # fmt: skip


class NotBuiltError(Exception):
    """Why no model of an architecture is built here."""


def all_architectures() -> tuple[str, ...]:
    """Every architecture of the conversion package, in order."""
    return tuple(sorted(supported_architectures()))


def model_class(architecture: str) -> type[Any]:
    """The class of transformers.

    Raises:
        NotBuiltError: It has none.
    """
    found = getattr(transformers, architecture, None)
    if found is None or getattr(found, "config_class", None) is None:
        raise NotBuiltError("transformers has no such class: its makers' code would have to be run")
    return found  # type: ignore[no-any-return]  # transformers' classes are loaded by name


def small_settings(config_class: type[Any], tokens: int) -> dict[str, Any]:
    """Settings for a config class, small by the names of its keys, parts of it included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = config_class()
        usual = made.to_dict()
    settings: dict[str, Any] = {}
    for key, value in usual.items():
        part = vars(made).get(key)
        if isinstance(part, PreTrainedConfig):
            settings[key] = {**small_settings(type(part), tokens), "model_type": part.model_type}
        elif key in _VOCABULARY_KEYS:
            settings[key] = tokens
        elif key in _SIZES and value is not None and not isinstance(value, dict | list):
            settings[key] = _SIZES[key]
    for key, token in (("bos_token_id", 1), ("eos_token_id", 2), ("pad_token_id", 0)):
        if key in usual:
            settings[key] = token
    settings.update(OWN.get(config_class.__name__, {}))
    return {key: value for key, value in settings.items() if value is not None} | NULL.get(config_class.__name__, {})


def save_small(architecture: str, directory: Path, family: str) -> Path:
    """Build and save a model of random weights, with a tokenizer of a family.

    Raises:
        NotBuiltError: transformers does not accept the config, with its reason.
    """
    found = model_class(architecture)
    directory.mkdir(parents=True)
    tokens = FAMILIES[family](directory)
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            settings = small_settings(found.config_class, tokens) | OF_ARCHITECTURE.get(architecture, {})
            config = found.config_class(**settings)
            config.architectures = [architecture]
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in found(config).parameters())
            if size > MOST_PARAMETERS:
                raise NotBuiltError(f"the smallest config found has {size / 1e6:.0f}M parameters")
            model = found(config)
        except NotBuiltError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise NotBuiltError(f"transformers: {type(error).__name__}: {said}") from error
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.02)
        model.to(torch.float32).save_pretrained(directory)
    return directory


def families_of(architecture: str) -> tuple[str, ...]:
    """Tokenizers to try with an architecture."""
    if architecture == "Gemma3TextModel":
        return ("gemma3",)
    model_type = str(getattr(model_class(architecture).config_class, "model_type", ""))
    return _FAMILIES.get(model_type, _USUAL_FAMILIES)


def save_convertible(architecture: str, directory: Path) -> ConvertResult:
    """A small model with the first tokenizer that its converter takes, in ``base``, and its file, ``base.gguf``.

    Raises:
        NotBuiltError: transformers builds none.
        PackagingError: The converter takes none of them, or refuses the model itself.
    """
    refusal: PackagingError | None = None
    for family in families_of(architecture):
        base = directory / "base"
        shutil.rmtree(base, ignore_errors=True)
        save_small(architecture, base, family)
        try:
            return convert(base, directory / "base.gguf", gguf_dtype="f32")
        except PackagingError as error:
            refusal = error
            if error.code in _OTHER_TOKENIZER or "token" in error.message:
                continue
            raise
    assert refusal is not None
    raise refusal


def chosen(day: str, part: int = 10) -> tuple[str, ...]:
    """The architectures of a day: every ``part``-th, another set each day, the same for the same day.

    Args:
        day: ISO date, or ``all``.
        part: One in how many.
    """
    if day == "all":
        return all_architectures()
    first = date.fromisoformat(day).toordinal() % part
    return all_architectures()[first::part]

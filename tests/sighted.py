"""Tiny vision and audio models of many families, built on the spot: random weights, tokenizer, preprocessor config.

Dimensions are the smallest that transformers, upstream's converter and llama.cpp all accept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.field.vocabularies import BPE_TOKENS, gpt2, llama
from tests.tiny import VOCABULARY

HIDDEN, TOWER, LAYERS = 64, 64, 2
TOWER_LAYERS = 4
"""Upstream numbers the projector's own matrices as if they were layers of the tower, so it must have more than two."""
_TEXT = {
    "vocab_size": BPE_TOKENS,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 4096,
}
_VIT = {
    "hidden_size": TOWER,
    "intermediate_size": 128,
    "num_hidden_layers": TOWER_LAYERS,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
_QWEN_VIT = {"depth": TOWER_LAYERS, "num_heads": 4, "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2}
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 56, "width": 56}}


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = _QWEN_VIT | {"embed_dim": TOWER, "hidden_size": HIDDEN, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=_TEXT | {"rope_parameters": _MROPE}, vision_config=vision, **_TOKENS)
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = _QWEN_VIT | {
        "hidden_size": TOWER, "intermediate_size": 128, "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1],
        "window_size": 56,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=_TEXT | {"rope_parameters": _MROPE}, vision_config=vision, **_TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = _QWEN_VIT | {
        "hidden_size": TOWER, "intermediate_size": 128, "out_hidden_size": HIDDEN, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(text_config=_TEXT | {"rope_parameters": _MROPE}, vision_config=vision, **_TOKENS)
    return Qwen3VLForConditionalGeneration(config)


def _idefics3() -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(
        text_config=_TEXT | {"model_type": "llama", "architectures": ["VLlama3ForCausalLM"]},
        vision_config=_VIT,
        scale_factor=2,
        image_token_id=5,
    )
    return Idefics3ForConditionalGeneration(config)


def _smolvlm() -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        text_config=_TEXT | {"model_type": "llama", "architectures": ["VLlama3ForCausalLM"]},
        vision_config=_VIT,
        scale_factor=2,
        image_token_id=5,
    )
    return SmolVLMForConditionalGeneration(config)


def _gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config=_TEXT | {"query_pre_attn_scalar": 16, "vocab_size": VOCABULARY},
        vision_config=_VIT,
        mm_tokens_per_image=4,
        image_token_index=5,
    )
    return Gemma3ForConditionalGeneration(config)


def _llava() -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config=_TEXT | {"model_type": "llama"},
        vision_config=_VIT | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=5,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def _mistral3() -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    config = Mistral3Config(
        text_config=_TEXT | {"model_type": "mistral"},
        vision_config=_VIT | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=5,
        spatial_merge_size=2,
    )
    return Mistral3ForConditionalGeneration(config)


def _lfm2_vl() -> Any:
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    text = _TEXT | {
        "model_type": "lfm2",
        "architectures": ["Lfm2ForCausalLM"],
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 128,
    }
    vision = {
        "model_type": "siglip2_vision_model", "patch_size": 16, "image_size": 64, "num_patches": 16,
        "vision_use_head": False,
    }  # fmt: skip
    config = Lfm2VlConfig(
        text_config=text, vision_config=_VIT | vision,
        image_token_id=5, projector_hidden_size=64, downsample_factor=2,
    )  # fmt: skip
    return Lfm2VlForConditionalGeneration(config)


def _glm4v() -> Any:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    vision = _QWEN_VIT | {
        "hidden_size": TOWER, "intermediate_size": 128, "out_hidden_size": HIDDEN, "image_size": 56,
    }  # fmt: skip
    config = Glm4vConfig(
        text_config=_TEXT | {"rope_parameters": _MROPE | {"partial_rotary_factor": 1.0}},
        vision_config=vision,
        **_TOKENS,
    )
    return Glm4vForConditionalGeneration(config)


def _qwen3_5() -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = _TEXT | {
        "rope_parameters": _MROPE | {"partial_rotary_factor": 1.0}, "num_hidden_layers": 4,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    }  # fmt: skip
    vision = _QWEN_VIT | {
        "hidden_size": TOWER, "intermediate_size": 128, "out_hidden_size": HIDDEN, "num_position_embeddings": 16,
    }  # fmt: skip
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **_TOKENS))


def _voxtral() -> Any:
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    audio = {
        "hidden_size": TOWER, "intermediate_size": 4 * TOWER, "num_hidden_layers": TOWER_LAYERS,
        "num_attention_heads": 4, "num_mel_bins": 80, "max_source_positions": 1500, "vocab_size": VOCABULARY,
    }  # fmt: skip
    config = VoxtralConfig(text_config=_TEXT | {"model_type": "llama"}, audio_config=audio, audio_token_id=5)
    return VoxtralForConditionalGeneration(config)


def _qwen2_audio() -> Any:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    audio = {
        "d_model": TOWER, "encoder_ffn_dim": 128, "encoder_layers": TOWER_LAYERS, "encoder_attention_heads": 4,
        "num_mel_bins": 128, "max_source_positions": 1500,
    }  # fmt: skip
    config = Qwen2AudioConfig(text_config=_TEXT | {"model_type": "qwen2"}, audio_config=audio, audio_token_index=5)
    return Qwen2AudioForConditionalGeneration(config)


_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "glm4v": _glm4v,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "llava": _llava,
    "mistral3": _mistral3,
    "lfm2_vl": _lfm2_vl,
    "voxtral": _voxtral,
    "qwen2_audio": _qwen2_audio,
}
"""Family -> what makes a model of it."""
_SENTENCEPIECE = frozenset({"gemma3"})
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_TOKENS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llava", "mistral3"), ("[IMG]", "[IMG_BREAK]", "[IMG_END]")),
    **dict.fromkeys(("idefics3", "smolvlm"), ("<fake_token_around_image>", "<global-img>", *_TILES)),
    "voxtral": ("[AUDIO]", "[BEGIN_AUDIO]", "[INST]", "[/INST]"),
}
"""Tokens that a family's converter or llama.cpp asks for by name."""


def tiny_sighted(directory: Path, family: str, *, seed: int = 0) -> Path:
    """Write a model of a family to a directory: ``save_pretrained``'s form, tokenizer and preprocessor config.

    Weights are scaled up from their initial values, so that a picture moves the answer.
    """
    import torch

    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    model = FAMILIES[family]().to(torch.bfloat16)
    model.save_pretrained(directory)
    (llama if family in _SENTENCEPIECE else gpt2)(directory)
    if family in _TOKENS_OF:
        _name_tokens(directory, *_TOKENS_OF[family])
    (directory / "preprocessor_config.json").write_text(json.dumps(_PIXELS))
    return directory


def _name_tokens(directory: Path, *texts: str) -> None:
    """Give ids that the vocabulary leaves free to tokens that a family's converter asks for."""
    path = directory / "tokenizer.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    taken = {token["id"] for token in description["added_tokens"]} | set(description["model"]["vocab"].values())
    free = (index for index in range(BPE_TOKENS) if index not in taken)
    like = description["added_tokens"][0]
    description["added_tokens"] += [{**like, "id": next(free), "content": text, "special": True} for text in texts]
    path.write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")

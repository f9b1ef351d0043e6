"""Tiny vision and audio models of many families, built on the spot: random weights, tokenizer, preprocessor config.

Dimensions are the smallest that transformers, upstream's converter and llama.cpp all accept.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
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


_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
_SIZED = {"hidden_size": TOWER, "intermediate_size": 128, "out_hidden_size": HIDDEN}
_LLAMA_OF_SMOLVLM = _TEXT | {"model_type": "llama", "architectures": ["VLlama3ForCausalLM"]}
_PIXTRAL = _VIT | {"model_type": "pixtral", "head_dim": 16}
_WHISPER = {"max_source_positions": 1500}
_SMOLVLM = {"text_config": _LLAMA_OF_SMOLVLM, "vision_config": _VIT, "scale_factor": 2, "image_token_id": 5}
_QWEN_TEXT = _TEXT | {"rope_parameters": _MROPE}
_WHOLLY_TURNED = _TEXT | {"rope_parameters": _MROPE | {"partial_rotary_factor": 1.0}}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen2_vl": ("Qwen2VL", {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VIT | {"embed_dim": TOWER, "hidden_size": HIDDEN, "mlp_ratio": 2},
        **_TOKENS,
    }),
    "qwen2_5_vl": ("Qwen2_5_VL", {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VIT | _SIZED | {"fullatt_block_indexes": [1], "window_size": 56},
        **_TOKENS,
    }),
    "qwen3_vl": ("Qwen3VL", {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VIT | _SIZED | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_TOKENS,
    }),
    "qwen3_5": ("Qwen3_5", {
        "text_config": _WHOLLY_TURNED | {
            "num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        },
        "vision_config": _QWEN_VIT | _SIZED | {"num_position_embeddings": 16},
        **_TOKENS,
    }),
    "glm4v": ("Glm4v", {
        "text_config": _WHOLLY_TURNED, "vision_config": _QWEN_VIT | _SIZED | {"image_size": 56}, **_TOKENS,
    }),
    "idefics3": ("Idefics3", _SMOLVLM),
    "smolvlm": ("SmolVLM", _SMOLVLM),
    "gemma3": ("Gemma3", {
        "text_config": _TEXT | {"query_pre_attn_scalar": 16, "vocab_size": VOCABULARY},
        "vision_config": _VIT, "mm_tokens_per_image": 4, "image_token_index": 5,
    }),
    "llava": ("Llava", {
        "text_config": _TEXT | {"model_type": "llama"}, "vision_config": _PIXTRAL,
        "image_token_index": 5, "vision_feature_layer": -1,
    }),
    "mistral3": ("Mistral3", {
        "text_config": _TEXT | {"model_type": "mistral"}, "vision_config": _PIXTRAL,
        "image_token_index": 5, "spatial_merge_size": 2,
    }),
    "lfm2_vl": ("Lfm2Vl", {
        "text_config": _TEXT | {
            "model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "layer_types": ["conv", "full_attention"],
            "block_ff_dim": 128,
        },
        "vision_config": _VIT | {
            "model_type": "siglip2_vision_model", "patch_size": 16, "image_size": 64, "num_patches": 16,
            "vision_use_head": False,
        },
        "image_token_id": 5, "projector_hidden_size": 64, "downsample_factor": 2,
    }),
    "voxtral": ("Voxtral", {
        "text_config": _TEXT | {"model_type": "llama"},
        "audio_config": _WHISPER | {
            "hidden_size": TOWER, "intermediate_size": 4 * TOWER, "num_hidden_layers": TOWER_LAYERS,
            "num_attention_heads": 4, "num_mel_bins": 80, "vocab_size": VOCABULARY,
        },
        "audio_token_id": 5,
    }),
    "qwen2_audio": ("Qwen2Audio", {
        "text_config": _TEXT | {"model_type": "qwen2"},
        "audio_config": _WHISPER | {
            "d_model": TOWER, "encoder_ffn_dim": 128, "encoder_layers": TOWER_LAYERS, "encoder_attention_heads": 4,
            "num_mel_bins": 128,
        },
        "audio_token_index": 5,
    }),
}  # fmt: skip
"""Family -> what transformers' classes of it begin with, and their config."""
_SENTENCEPIECE = frozenset({"gemma3"})
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_TOKENS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llava", "mistral3"), ("[IMG]", "[IMG_BREAK]", "[IMG_END]")),
    **dict.fromkeys(("idefics3", "smolvlm"), ("<fake_token_around_image>", "<global-img>", *_TILES)),
    "voxtral": ("[AUDIO]", "[BEGIN_AUDIO]", "[INST]", "[/INST]"),
}
"""Tokens that a family's converter or llama.cpp asks for by name."""


def tiny_sighted(directory: Path, family: str, *, seed: int = 0) -> Path:
    """Write a model of a family to a directory: ``save_pretrained``'s form, tokenizer and preprocessor config."""
    import torch
    import transformers

    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    name, config = FAMILIES[family]
    described = getattr(transformers, f"{name}Config")(**copy.deepcopy(dict(config)))  # which it changes as it reads
    model = getattr(transformers, f"{name}ForConditionalGeneration")(described).to(torch.bfloat16)
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

"""Models of a few thousand weights for the tests of importance matrices, and a text for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.golden.models import bell
from worker.models.checkpoint import open_base_model
from worker.models.convert.upstream import load_upstream
from worker.models.convert.weights import MergedWeights
from worker.models.imatrix.converter import open_converter

DATA = Path(__file__).with_name("data")
VOCABULARY = 336
"""Rows of the embedding: the tokens of ``data/tokenizer.model`` and a few to spare."""

TEXT = (
    "The miller counted the sacks twice, once by hand and once by ear. A full sack lands like a door that has been shut"
    " for good; a sack that is short by a scoop lands like a question. In forty years he had been wrong one time, and"
    " that was the year of the cold, when everybody's ears were wrong.\n"
    "def area(width, height):\n    if width < 0 or height < 0:\n        raise ValueError('negative')\n"
    "    return width * height\n"
    "Seven times eight is 56, and 56 less 9 is 47; the rest follows from there, or does not follow at all.\n"
) * 4

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# name -> (model class, config class, settings): dense, tied, fused projections, transposed weights, experts fused on
# loading, experts beside a shared one, experts multiplied in one batch, an encoder with a decoder, a text model inside
# a multimodal one
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SMALL),
    "gemma2-tied": ("Gemma2ForCausalLM", "Gemma2Config", {**_SMALL, "head_dim": 8, "tie_word_embeddings": True}),
    "phi3-fused": ("Phi3ForCausalLM", "Phi3Config", _SMALL),
    "gpt2-transposed": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_SMALL, "num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**_SMALL, **_EXPERTS, "shared_expert_intermediate_size": 40},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_SMALL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": None},
    ),
    "llama4-batched": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            **_SMALL,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 1,
        },
    ),
    "t5-encoder-decoder": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8},
    ),
    "qwen2-vl-text": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": {
                **_SMALL,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "num_heads": 2,
                "intermediate_size": 16,
                "out_hidden_size": 32,
            },
        },
    ),
}


def save_model(name: str, directory: Path) -> Path:
    """One of ``ARCHITECTURES`` with random weights and the tokenizer, as transformers saves it."""
    model_class, config_class, settings = ARCHITECTURES[name]
    settings = {key: value for key, value in settings.items() if value is not None}
    torch.manual_seed(11)
    config = getattr(transformers, config_class)(**settings)
    return save(getattr(transformers, model_class)(config), directory)


def save_recorded_model(directory: Path) -> Path:
    """The model that ``data/llama-imatrix.*`` were recorded from: the same weights with every library version."""
    config = transformers.MixtralConfig(
        **{**_SMALL, "num_hidden_layers": 1}, num_local_experts=3, num_experts_per_tok=1
    )
    model = transformers.MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.from_numpy(bell(name, parameter.numel())).reshape(parameter.shape) * 8
            parameter.copy_(values + 1 if parameter.dim() == 1 else values)
    return save(model, directory)


def save(model: transformers.PreTrainedModel, directory: Path) -> Path:
    """Weights, config and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DATA / file, directory / file)
    return directory


def converted_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """What the converter makes of a model: GGUF name -> shape, outermost first."""
    converter: Any = open_converter(load_upstream(), MergedWeights(open_base_model(directory)))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in converter.get_tensors():
        block = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        shapes |= {new: tuple(value.shape) for new, value in converter.modify_tensors(tensor, name, block)}
    return shapes

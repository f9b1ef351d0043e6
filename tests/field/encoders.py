"""Models that write no text: encoders, embedders of sentence-transformers, rerankers, an encoder with a decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tests.field.vocabularies import FAMILIES

_BERT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_XLMR = {
    **_BERT, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip
_MODERN = {**_BERT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_T5 = {"d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 4, "d_kv": 16, "decoder_start_token_id": 0}

# name -> (tokenizer, class, settings)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "xlm-roberta": ("xlm-roberta", "XLMRobertaModel", _XLMR),
    "reranker": ("xlm-roberta", "XLMRobertaForSequenceClassification", {**_XLMR, "num_labels": 1}),
    "modernbert": ("gpt2-ends", "ModernBertModel", _MODERN),
    "t5-encoder": ("t5", "T5EncoderModel", _T5),
    "t5": ("t5", "T5ForConditionalGeneration", _T5),
}


def save_encoder(name: str, directory: Path, *, scale: float = 1.0) -> Path:
    """A random model with its tokenizer, its weights times ``scale``."""
    return _saved(MODELS[name], directory, lambda parameter: parameter.mul_(scale))


_DECODER = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GEMMA = {
    "use_bidirectional_attention": True, "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 16,
}  # fmt: skip
_PROMPTS = {"query": "query: ", "document": "passage: "}
_NAMED = {"id2label": {0: "RELEVANCE"}, "label2id": {"RELEVANCE": 0}}

# name -> (tokenizer, class, settings, pooling, sizes of the dense layers after it)
EMBEDDERS: dict[str, tuple[str, str, dict[str, Any], str, tuple[int, ...]]] = {
    "bert": ("bert", "BertModel", {**_BERT, "pad_token_id": 0}, "mean_tokens", ()),
    "xlm-roberta": ("xlm-roberta", "XLMRobertaModel", _XLMR, "cls_token", ()),
    "masked-xlm-roberta": ("xlm-roberta", "XLMRobertaForMaskedLM", _XLMR, "mean_tokens", ()),
    "modernbert": ("gpt2-ends", "ModernBertModel", _MODERN, "cls_token", ()),
    "qwen3": ("llama", "Qwen3Model", _DECODER, "lasttoken", ()),
    "embedding-gemma": (
        "gemma3", "Gemma3TextModel", {**_DECODER, **_GEMMA}, "mean_tokens", (96, 64)
    ),
}  # fmt: skip
RERANKERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "BertForSequenceClassification", {**_BERT, "pad_token_id": 0, **_NAMED}),
    "xlm-roberta": ("xlm-roberta", "XLMRobertaForSequenceClassification", {**_XLMR, **_NAMED}),
    "qwen3": ("gpt2", "Qwen3ForCausalLM", {**_DECODER, "tie_word_embeddings": True}),
}


def _scaled(parameter: torch.Tensor, scale: float) -> torch.Tensor:
    """Matrices times ``scale``; biases and norms, which start at nothing and one, some way off that."""
    return parameter.mul_(scale) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.05)


def _saved(
    model: tuple[str, str, dict[str, Any]], directory: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> Path:
    """A random model with its tokenizer, its parameters changed in place."""
    family, class_name, settings = model
    directory.mkdir(parents=True)
    tokens = FAMILIES[family](directory)
    torch.manual_seed(4)
    model_class = getattr(transformers, class_name)
    made = model_class(model_class.config_class(vocab_size=tokens, **settings))
    with torch.no_grad():
        for parameter in made.parameters():
            change(parameter)
    made.save_pretrained(directory)
    return directory


def save_embedder(name: str, directory: Path, *, scale: float = 3.0) -> Path:
    """A directory of sentence-transformers with pooling, dense layers, normalisation and prompts."""
    family, class_name, settings, pooling, dense = EMBEDDERS[name]
    _saved((family, class_name, settings), directory, lambda parameter: _scaled(parameter, scale))
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _put(directory / "1_Pooling", {"word_embedding_dimension": 64, f"pooling_mode_{pooling}": True})
    sizes = (64, *dense)
    for number, (before, after) in enumerate(zip(sizes, dense, strict=False), start=2):
        steps.append((f"{number}_Dense", "Dense"))
        linear = {"in_features": before, "out_features": after, "bias": False}
        _put(directory / f"{number}_Dense", linear | {"activation_function": "torch.nn.modules.linear.Identity"})
        save_file({"linear.weight": torch.randn(after, before)}, directory / f"{number}_Dense" / "model.safetensors")
    steps.append((f"{len(steps)}_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(steps)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    said = {"prompts": _PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(said))
    return directory


def save_reranker(name: str, directory: Path, *, scale: float = 3.0) -> Path:
    """A model that scores a query and a document; Qwen3's does by the probability of an answer."""
    _saved(RERANKERS[name], directory, lambda parameter: _scaled(parameter, scale))
    if name == "qwen3":
        (directory / "README.md").write_text("# Qwen3-Reranker-0.6B\n")
        description = json.loads((directory / "tokenizer.json").read_text("utf-8"))
        for number, text in enumerate(("yes", "no", "|"), start=49010):
            description["added_tokens"].append(
                {**description["added_tokens"][0], "id": number, "content": text, "special": False}
            )
        (directory / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    return directory


def _put(directory: Path, config: dict[str, Any]) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))

"""Models that write no text: encoders, a reranker, and an encoder with a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

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
    "modernbert": ("gpt2", "ModernBertModel", _MODERN),
    "t5-encoder": ("t5", "T5EncoderModel", _T5),
    "t5": ("t5", "T5ForConditionalGeneration", _T5),
}


def save_encoder(name: str, directory: Path, *, scale: float = 1.0) -> Path:
    """A random model with its tokenizer, its weights times ``scale``."""
    family, class_name, settings = MODELS[name]
    directory.mkdir(parents=True)
    tokens = FAMILIES[family](directory)
    torch.manual_seed(4)
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(vocab_size=tokens, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(directory)
    return directory

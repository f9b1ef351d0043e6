"""Weights that upstream would lose, misplace or turn the wrong way: handed over as it means them.

Classification heads: llama.cpp computes ``cls_out(tanh(cls(h)))`` of the first token, with either part missing as it
may be (``llm_graph_context::build_pooling``, b11434).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError

_CLASSES = 2
_CLASSIFIER = "ForSequenceClassification"
_REFUSED = {
    "CamembertModel": "upstream takes it for a BERT, whose positions begin with 0 and whose words WordPiece cuts; "
    "CamemBERT's begin with 2, and sentencepiece cuts them",
    "HunYuanMoEV1ForCausalLM": "upstream reads its tokenizer through its makers' own code (mergeable_ranks), which is "
    "never run here",
    "DistilBertForSequenceClassification": "llama.cpp applies tanh in such a head, where DistilBERT has ReLU",
}
_FP4_ONLY = "DeepseekV4ForCausalLM"
# architecture -> name of a weight -> the name that upstream means, empty where the file has no place for it on purpose
_NAMES: Mapping[str, tuple[re.Pattern[str], str]] = {
    # BERT's pooler is the step `cls`, and upstream leaves it out, as it does for embeddings
    "BertForSequenceClassification": (re.compile(r"(?:bert\.)?pooler\.dense\.(.+)"), r"classifier.dense.\1"),
    # the head for masked tokens, which upstream leaves out of every other encoder
    "ModernBertForMaskedLM": (re.compile(r"(?:head|decoder)\..+"), ""),
    # the same of encoders, and of classifiers trained from a model for masked tokens
    **dict.fromkeys(
        (
            "RobertaModel",
            "XLMRobertaModel",
            "EuroBertModel",
            "RobertaForSequenceClassification",
            "XLMRobertaForSequenceClassification",
        ),
        (re.compile(r"lm_head\..+"), ""),
    ),
    "ModernBertForSequenceClassification": (re.compile(r"decoder\..+"), ""),
    # transformers 5 saves the layers without experts under the name of those with
    **dict.fromkeys(
        ("KimiLinearForCausalLM", "KimiLinearModel"),
        (re.compile(r"(.+)\.block_sparse_moe\.((?:gate|up|down)_proj\..+)"), r"\1.mlp.\2"),
    ),
}
_TRANSPOSED_EXPERTS = re.compile(r"experts\.(gate_up_proj|down_proj)(\.weight)?$")
_TRANSPOSING = ("Qwen3VLMoeForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration")


def check_expressible(architecture: str, names: Iterable[str]) -> None:
    """Refuse a model of which upstream would make a file that computes otherwise, or none.

    Args:
        architecture: Name in ``config.json``.
        names: Of all weights.

    Raises:
        PackagingError: ``unsupported_architecture``.
    """
    why = _REFUSED.get(architecture)
    if architecture == _FP4_ONLY and not any(name.endswith(".scale") for name in names):
        why = "upstream's converter takes its experts in FP4 alone, as the Hub has them, and these are in 16 or 32 bits"
    if why is not None:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"{architecture} cannot be packaged: {why}",
            fields={"architecture": architecture},
        )


def meant_name(architecture: str, name: str) -> str | None:
    """The name under which upstream's converter takes a weight; None where the file has no place for it on purpose."""
    pattern, meant = _NAMES.get(architecture, (None, ""))
    match = pattern.fullmatch(name) if pattern is not None else None
    return name if match is None else match.expand(meant) or None


def as_on_the_hub(architecture: str, hparams: Mapping[str, Any], name: str, tensor: Any) -> Any:
    """Qwen3-VL's experts the way the Hub has them, (experts, in, out), which is what upstream turns round.

    transformers 5 saves them as (experts, out, in). Both are told apart by their shape, as transformers does; where
    both sizes are the same it reads, and so does this, what it saves itself as the Hub's.

    Args:
        architecture: Name in ``config.json``.
        hparams: The text model's config.
        name: The weight's.
        tensor: The weight, shape (experts, rows, columns); anything with ``permute``.
    """
    match = _TRANSPOSED_EXPERTS.search(name) if architecture in _TRANSPOSING else None
    if match is None or "hidden_size" not in hparams or "moe_intermediate_size" not in hparams:
        return tensor
    hidden, inner = int(hparams["hidden_size"]), int(hparams["moe_intermediate_size"])
    hub = (hidden, 2 * inner) if match[1] == "gate_up_proj" else (inner, hidden)
    shape = tuple(int(extent) for extent in tensor.shape[-2:])
    return tensor.permute(0, 2, 1) if shape == hub[::-1] != hub else tensor


def classifier_labels(architecture: str, hparams: Mapping[str, Any]) -> Mapping[Any, str] | None:
    """Labels of a classifier of two classes that were never named.

    Upstream takes ``LABEL_0`` and ``LABEL_1`` for what transformers adds to models without a classifier, drops them,
    and makes a file of one class that does not load. A model of this class has two outputs where it says two.
    """
    labels = hparams.get("id2label")
    if not architecture.endswith(_CLASSIFIER) or not isinstance(labels, Mapping) or len(labels) != _CLASSES:
        return None
    return {int(key): str(label) for key, label in labels.items()}

"""Classification heads: where upstream loses or misplaces a part of one, it is put right or refused by name.

llama.cpp computes ``cls_out(tanh(cls(h)))`` of the first token, with either part missing as it may be
(``llm_graph_context::build_pooling``, b11434).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError

_CLASSES = 2
_CLASSIFIER = "ForSequenceClassification"
# BERT's pooler is this very step, and upstream leaves it out, as it does for embeddings
_POOLER_IS_CLS = ("BertForSequenceClassification",)
_POOLER, _CLS = "pooler.dense.", "classifier.dense."
_REFUSED = {
    "DistilBertForSequenceClassification": "llama.cpp applies tanh in such a head, where DistilBERT has ReLU",
}


def check_head(architecture: str) -> None:
    """Refuse a model whose head llama.cpp would compute otherwise.

    Raises:
        PackagingError: ``unsupported_architecture``.
    """
    if architecture in _REFUSED:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"{architecture} cannot be packaged: {_REFUSED[architecture]}",
            fields={"architecture": architecture},
        )


def head_name(architecture: str, name: str) -> str:
    """The name under which upstream's converter keeps a weight of a head."""
    head, found, rest = name.rpartition(_POOLER)
    if architecture in _POOLER_IS_CLS and found and head in ("", "bert."):
        return _CLS + rest
    return name


def classifier_labels(architecture: str, hparams: Mapping[str, Any]) -> Mapping[Any, str] | None:
    """Labels of a classifier of two classes that were never named.

    Upstream takes ``LABEL_0`` and ``LABEL_1`` for what transformers adds to models without a classifier, drops them,
    and makes a file of one class that does not load. A model of this class has two outputs where it says two.
    """
    labels = hparams.get("id2label")
    if not architecture.endswith(_CLASSIFIER) or not isinstance(labels, Mapping) or len(labels) != _CLASSES:
        return None
    return {int(key): str(label) for key, label in labels.items()}

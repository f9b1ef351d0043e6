"""From an adapter's module path to the base tensor it adapts.

An adapter names modules of the model in memory at training time, a checkpoint names tensors in a file, and both change
between releases: prefixes (``model.``, ``language_model.``, ``transformer.``) come and go. A name is looked for as
written first, then without such prefixes on both sides; more than one answer is as bad as none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from worker.models.checkpoint.base_model import BaseModel

# leading components that only say inside which wrapper the language model lies
_PREFIXES = frozenset(
    {"model", "base_model", "module", "language_model", "text_model", "llm", "transformer", "thinker"}
)
# last components of module paths
EMBEDDING_NAMES = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings"})
# model types whose layers store (i, o) weights (transformers' Conv1D); only needed where a weight is square
CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_OTHER_TOWERS = re.compile(r"vision|visual|audio|speech")
_INSIDE = re.compile(r"(^|\.)(layers\.\d+|mtp\w*)\.")  # prediction layers may have an embedding of their own
HEAD_NAMES = frozenset({"lm_head", "embed_out", "output_layer"})


def canonical(name: str) -> str:
    """``name`` without leading wrapper components; never empty."""
    path = name.split(".")
    start = 0
    while start < len(path) - 1 and path[start] in _PREFIXES:
        start += 1
    return ".".join(path[start:])


def is_embedding(tensor: str) -> bool:
    """Whether a tensor name is that of a token embedding."""
    path = tensor.split(".")
    return path[-1] == "weight" and path[-2:-1] != [] and path[-2] in EMBEDDING_NAMES


def is_head(tensor: str) -> bool:
    """Whether a tensor name is that of the output head."""
    return canonical(tensor).removesuffix(".weight") in HEAD_NAMES


def head_name(embedding: str) -> str:
    """The tensor name that the head of a tied model gets when it is untied."""
    prefix = "language_model." if embedding.startswith("language_model.model.") else ""
    return f"{prefix}lm_head.weight"


def text_embedding(base: BaseModel) -> str | None:
    """The language model's token embedding; None where none or several look like it."""
    embeddings = [
        name
        for name, entry in base.tensors.items()
        if is_embedding(name)
        and len(entry.shape) == 2
        and not _OTHER_TOWERS.search(name)
        and not _INSIDE.search(canonical(name))
    ]
    return embeddings[0] if len(embeddings) == 1 else None


def config_keys(base: BaseModel, key: str) -> list[str]:
    """Where a key of the language model lies in ``config.json``: at the top, in ``text_config`` (dotted), or both."""
    if not isinstance(base.config.get("text_config"), dict):
        return [key]
    return [key, f"text_config.{key}"] if key in base.config else [f"text_config.{key}"]


class TensorNames:
    """Finds base tensors by the names that adapters use."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = frozenset(names)
        self._by_canonical: dict[str, list[str]] = defaultdict(list)
        for name in self._exact:
            self._by_canonical[canonical(name)].append(name)

    def __contains__(self, name: str) -> bool:
        return name in self._exact

    def find(self, name: str) -> str | None:
        """The base tensor meant by ``name``; None where there is none or more than one."""
        if name in self._exact:
            return name
        candidates = self._by_canonical.get(canonical(name), [])
        return candidates[0] if len(candidates) == 1 else None

"""What the mixture depends on in a model, apart from its tensors.

Everything here follows how llama.cpp b11434 reads hyperparameters before it quantizes
(``llama_model_base::load_hparams`` and the few ``load_arch_hparams`` that change what the rules look at).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.metadata import Metadata, get_value

ARCHITECTURE_KEY = "general.architecture"

_MODEL_KEYS = (
    "block_count",
    "nextn_predict_layers",
    "num_loops",
    "expert_count",
    "attention.head_count",
    "attention.head_count_kv",
)

_LAYERS_OF_70B: dict[str, int] = {"llama": 80, "llama-embed": 80, "qwen2": 80, "olmo": 80, "deci": 80, "jais2": 68}
"""Architectures of which llama.cpp calls a model of so many layers "70B". It is a name, not a size."""

_70B_IF_GROUPED = ("llama", "llama-embed")
"""Of these only models with fewer KV heads than heads, and not 8 experts."""

_PROJECTOR = "clip"
"""Vision and audio projectors; llama.cpp reads no hyperparameters of theirs when it quantizes."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts.

    Attributes:
        architecture: ``general.architecture``.
        block_count: Number of layers, as the rules count them: trailing prediction layers included.
        expert_count: Number of routed experts; 0 for dense models.
        heads_per_kv_head: Query heads per KV head in the first layer; 0 where it has no attention.
        is_70b: Whether llama.cpp calls the model "70B", which gives its value projections more bits.
    """

    architecture: str
    block_count: int
    expert_count: int = 0
    heads_per_kv_head: int = 0
    is_70b: bool = False


def model_facts(metadata: Metadata) -> ModelFacts:
    """Facts from a GGUF header.

    Raises:
        PackagingError: ``gguf_invalid`` if the architecture or the number of layers is missing or no count.
    """
    architecture = get_value(metadata, ARCHITECTURE_KEY, "")
    keys = (ARCHITECTURE_KEY, *(f"{architecture}.{key}" for key in _MODEL_KEYS))
    return facts_from_values({key: metadata[key].value for key in keys if key in metadata})


def facts_from_values(values: Mapping[str, Any]) -> ModelFacts:
    """Facts from plain key values, for a model that is not a GGUF file yet; raises as :func:`model_facts`."""
    architecture = values.get(ARCHITECTURE_KEY)
    if not isinstance(architecture, str) or not architecture:
        raise PackagingError(ErrorCode.GGUF_INVALID, f"the metadata has no {ARCHITECTURE_KEY}")
    if architecture == _PROJECTOR:
        return ModelFacts(architecture, block_count=0)
    counts = {key: _integer(values, f"{architecture}.{key}") for key in _MODEL_KEYS}
    blocks = counts["block_count"]
    if not blocks:
        raise PackagingError(ErrorCode.GGUF_INVALID, f"the metadata has no {architecture}.block_count")
    experts = counts["expert_count"] or 0
    heads = counts["attention.head_count"] or 0
    kv_heads = counts["attention.head_count_kv"]
    kv_heads = heads if kv_heads is None else kv_heads
    own_blocks = blocks - (counts["nextn_predict_layers"] or 0)
    return ModelFacts(
        architecture,
        _counted_blocks(architecture, blocks, own_blocks, counts["num_loops"] or 1),
        experts,
        heads // kv_heads if kv_heads else 0,
        _is_70b(architecture, own_blocks, experts, grouped=heads != kv_heads),
    )


def _counted_blocks(architecture: str, blocks: int, own_blocks: int, loops: int) -> int:
    """Two architectures run with more layers than they store, and the rules see that number."""
    if architecture == "nanbeige" and loops > 1:
        return own_blocks * loops
    if architecture == "graniteswitch":
        return own_blocks + 1
    return blocks


def _is_70b(architecture: str, own_blocks: int, experts: int, *, grouped: bool) -> bool:
    if _LAYERS_OF_70B.get(architecture) != own_blocks:
        return False
    return architecture not in _70B_IF_GROUPED or (grouped and experts != 8)


def _integer(values: Mapping[str, Any], key: str) -> int | None:
    """A count; of a list (one number per layer) the first."""
    value = values.get(key)
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PackagingError(ErrorCode.GGUF_INVALID, f"the metadata value {key} is {value!r}, not a count")
    return value

"""Choosing quant types for a place to run: what fits, what is recommended there, and how good it is. Pure.

Memory to run a file is its size, the KV cache at the context length asked for (16-bit; layers with a sliding window
keep that window only), and llama.cpp's working buffers, which are an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from api_client.contract.byte_sizes import memory_bytes
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quality import Figure
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.words.suggestions import did_you_mean, nearest

_Q = QuantType
GIB = 2**30
DEFAULT_CONTEXT = 4096
_CACHE_ELEMENT_BYTES = 2
_SAME_SIZE: Final = 0.02
"""Files of one type whose sizes differ by less are of models of one size: a merged model has a few more tokens."""
_BATCH = 512
"""Tokens that llama.cpp computes at once by default; the working buffers hold a few rows of them."""

QUALITY: Final[dict[QuantType, int]] = {
    quant_type: info.quality_rank // 10
    for quant_type, info in sorted(QUANT_TYPES.items(), key=lambda row: row[1].quality_rank, reverse=True)
}
"""Expected quality class of every type, 7 the original and 0 the worst; the best type stands first."""

QUALITY_WORDS: Final = (
    ("broken on most models", "多数模型不可用"),
    ("clear loss", "损失明显"),
    ("noticeable loss", "有可感知的损失"),
    ("small loss", "损失较小"),
    ("very small loss", "损失极小"),
    ("close to the original", "接近原始"),
    ("practically the original", "基本等同原始"),
    ("full precision", "全精度"),
)


_WINDOW_PERIODS: Final = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2}
"""Architectures whose files name a window and not the layers that have it: of so many, the last one attends to all."""


class Target(BaseModel):
    """A place to run: what is usually chosen for it, and the memory it has."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_bytes: int
    preferred: tuple[QuantType, ...]


TARGETS: Final[dict[str, tuple[int | None, tuple[QuantType, ...]]]] = {
    "gpu-24g": (24 * GIB, (_Q.F16, _Q.Q8_0)),
    "gpu-12g": (12 * GIB, (_Q.Q5_K_M,)),
    "gpu-8g": (8 * GIB, (_Q.Q4_K_M,)),
    "cpu": (None, (_Q.Q4_K_M, _Q.Q3_K_M)),
    "mobile": (4 * GIB, (_Q.IQ3_M, _Q.IQ2_S)),
}
"""Memory (``None``: that of the machine) and the types usually chosen."""


class ModelShape(BaseModel):
    """Dimensions that decide the memory beyond the weights.

    Attributes:
        architecture: GGUF architecture.
        kv_heads: KV heads of each layer; 0 for a layer without attention.
        key_length: Elements of one key of one head.
        value_length: Elements of one value of one head.
        embedding_length: Hidden size.
        vocabulary: Number of tokens.
        context_length: Longest context it was trained for; 0 if not known.
        windows: Tokens that each layer's attention looks back, 0 for all of them; empty where every layer does that.
    """

    model_config = ConfigDict(frozen=True)

    architecture: str
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    embedding_length: int
    vocabulary: int
    context_length: int = 0
    windows: tuple[int, ...] = ()

    def cache_bytes(self, context: int) -> int:
        """KV cache for a context of so many tokens. A window is kept with room for one batch."""
        kept = (min(context, window + _BATCH) if window else context for window in self.windows or repeat(0))
        heads = sum(heads * tokens for heads, tokens in zip(self.kv_heads, kept, strict=False))
        return heads * (self.key_length + self.value_length) * _CACHE_ELEMENT_BYTES

    def buffer_bytes(self) -> int:
        """Working buffers: the logits of one batch and some rows of activations (estimate)."""
        return _BATCH * (self.vocabulary + 8 * self.embedding_length) * 4


class MeasuredType(BaseModel):
    """Figures of a file of a type, from the report of an earlier job."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_type: QuantType
    model: str = Field(max_length=200)
    """What it was compared with."""
    size_bytes: int = Field(ge=0, lt=2**63)
    mean_kld: Figure
    same_top: Figure
    retention: Figure | None = None

    def stands_for(self, quant_type: QuantType, size_bytes: int) -> bool:
        """Whether a file of a type and size, of a model of the same architecture, may be judged by it."""
        return self.quant_type is quant_type and abs(self.size_bytes - size_bytes) <= _SAME_SIZE * size_bytes


class Choice(BaseModel):
    """One row: a quant type for this model and this place."""

    model_config = ConfigDict(frozen=True)

    quant_type: QuantType
    file_bytes: int
    memory_bytes: int
    fits: bool
    quality: int
    measured: MeasuredType | None = None
    """Figures of a file of this type and size, where a report has them; they say more than ``quality``."""
    needs_imatrix: bool
    recommended: bool


class Recommendation(BaseModel):
    """All types for one model and one place, the best first."""

    model_config = ConfigDict(frozen=True)

    target: Target
    context: int
    cache_bytes: int
    buffer_bytes: int
    choices: tuple[Choice, ...]
    best_fitting: QuantType | None
    """The one of the highest quality that fits."""


def recommend(
    shape: ModelShape,
    sizes: Mapping[QuantType, int],
    target: Target,
    context: int,
    measured: Sequence[MeasuredType] = (),
) -> Recommendation:
    """Judge every type whose file size is known.

    Recommended are the types usually chosen for the place, as far as they fit; if none fits, the best that does.

    Args:
        shape: The model's dimensions.
        sizes: Size in bytes of the file of each type.
        target: The place.
        context: Context length in tokens.
        measured: Figures of earlier reports of models of its architecture, the newest first.
    """
    cache, buffers = shape.cache_bytes(context), shape.buffer_bytes()
    fitting = [quant_type for quant_type, size in sizes.items() if size + cache + buffers <= target.memory_bytes]
    best = next((quant_type for quant_type in QUALITY if quant_type in fitting), None)
    usual = [quant_type for quant_type in target.preferred if quant_type in fitting]
    marked = usual or ([best] if best is not None else [])
    return Recommendation(
        target=target,
        context=context,
        cache_bytes=cache,
        buffer_bytes=buffers,
        choices=tuple(
            Choice(
                quant_type=quant_type,
                file_bytes=size,
                memory_bytes=size + cache + buffers,
                fits=quant_type in fitting,
                quality=QUALITY[quant_type],
                measured=next((figures for figures in measured if figures.stands_for(quant_type, size)), None),
                needs_imatrix=QUANT_TYPES[quant_type].needs_imatrix,
                recommended=quant_type in marked,
            )
            for quant_type, size in ((quant_type, sizes[quant_type]) for quant_type in QUALITY if quant_type in sizes)
        ),
        best_fitting=best,
    )


def parse_target(text: str, machine_bytes: int) -> Target:
    """A target by name, or a size such as ``6GB`` or ``5.5GiB``.

    Args:
        text: What was asked for.
        machine_bytes: Memory of this machine, for ``cpu``.

    Raises:
        PackagingError: ``request_invalid`` with the known names.
    """
    name = text.strip().lower()
    if name in TARGETS:
        memory, preferred = TARGETS[name]
        return Target(name=name, memory_bytes=machine_bytes if memory is None else memory, preferred=preferred)
    size = memory_bytes(name)
    if size is not None:
        return Target(name=text.strip(), memory_bytes=size, preferred=())
    suggestion = nearest(name, TARGETS)
    raise PackagingError(
        ErrorCode.REQUEST_INVALID,
        f"unknown target {text!r}" + did_you_mean(suggestion),
        remedy=f"Use {', '.join(TARGETS)} or a size such as 6GB.",
        fields={"field": "target"},
    )


def shape_of(metadata: Mapping[str, Any]) -> ModelShape:
    """Dimensions from a GGUF file's metadata, as plain values.

    Raises:
        PackagingError: ``gguf_invalid`` if the architecture or its number of layers is missing.
    """
    architecture = metadata.get("general.architecture")

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        return value if isinstance(value, int) else default

    blocks, heads, width = (
        number("block_count"),
        metadata.get(f"{architecture}.attention.head_count", 0),
        number("embedding_length"),
    )
    if not isinstance(architecture, str) or blocks <= 0:
        raise PackagingError(ErrorCode.GGUF_INVALID, "the metadata names no architecture with layers")
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    if isinstance(kv_heads, list | tuple):
        per_layer = tuple(map(int, kv_heads))
    else:  # of an interval only the last layer has attention, the others are recurrent
        interval = number("full_attention_interval", 1) or 1
        per_layer = tuple(int(kv_heads) if (layer + 1) % interval == 0 else 0 for layer in range(blocks))
    most_heads = max(map(int, heads), default=0) if isinstance(heads, list | tuple) else int(heads)
    head_length = width // most_heads if most_heads else 0
    tokens = metadata.get("tokenizer.ggml.tokens")
    return ModelShape(
        architecture=architecture,
        kv_heads=per_layer,
        key_length=number("attention.key_length", head_length),
        value_length=number("attention.value_length", head_length),
        embedding_length=width,
        vocabulary=number("vocab_size") or (len(tokens) if isinstance(tokens, list | tuple) else 0),
        context_length=number("context_length"),
        windows=_windows(
            number("attention.sliding_window"),
            metadata.get(f"{architecture}.attention.sliding_window_pattern", _WINDOW_PERIODS.get(architecture)),
            blocks,
        ),
    )


def _windows(window: int, pattern: Any, blocks: int) -> tuple[int, ...]:
    """The window of each layer, by a list of the layers that have it or by the period of those that have none."""
    if isinstance(pattern, int) and pattern > 0:
        pattern = [(layer + 1) % pattern != 0 for layer in range(blocks)]
    if window <= 0 or not isinstance(pattern, list | tuple) or len(pattern) < blocks:
        return ()
    return tuple(window if has_it else 0 for has_it in pattern[:blocks])

"""Small llama-like GGUF models and importance matrices, the same bytes on every machine and with every library version.

Weights are integer arithmetic on a counter, scaled by powers of two; no random-number library is involved. The digests
of what llama-quantize makes of these models are in ``files.json``; ``record_files.py`` records them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.metadata import MetadataValue, ValueType, string_value, uint32_value
from worker.models.gguf.tensors import TensorSpec, normal_shape
from worker.models.gguf.types import GGMLType
from worker.models.gguf.writer import write_gguf

F32, F16, BF16 = GGMLType.F32, GGMLType.F16, GGMLType.BF16


@dataclass(frozen=True)
class Shape:
    """A model's sizes. ``experts`` 0 is dense; a tied model has no output tensor."""

    source: GGMLType
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    experts: int = 0


MODELS = {
    "dense": Shape(F16, 256, 512, 2, 4, 1, 320),
    "tied": Shape(BF16, 288, 512, 2, 3, 3, 256, tied=True),  # rows of 288 do not fit blocks of 256
    "experts": Shape(F32, 256, 256, 2, 8, 4, 128, experts=3),
}


def hashed(name: str, count: int) -> NDArray[np.uint32]:
    """Well-mixed 32-bit numbers that depend on the name and the position only (the finalizer of MurmurHash3)."""
    numbers = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(factor)
    return numbers


def bell(name: str, count: int) -> NDArray[np.float32]:
    """Values around zero, about 0.02 wide, one in 256 eight times larger; all exact in float16 but the largest."""
    numbers = hashed(name, count)
    total = sum(((numbers >> np.uint32(8 * k)) & np.uint32(255)).astype(np.int64) for k in range(4)) - 510
    rare = hashed(name + "!", count) & np.uint32(255) == 0
    return (np.where(rare, total * 8, total) * 2.0**-13).astype(np.float32)


def positive(name: str, count: int) -> NDArray[np.float32]:
    """Positive values from 2**-8 to 2**8."""
    numbers = hashed(name, count)
    exponent = (numbers & np.uint32(15)).astype(np.int64) - 8
    return np.ldexp(1.0 + (numbers >> np.uint32(20)).astype(np.float64) * 2.0**-12, exponent).astype(np.float32)


def tensor_list(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], GGMLType]]:
    """Name, shape (ggml order) and type, in an order that is not the one of a quantized file."""
    yield "output_norm.weight", (shape.width,), F32
    for layer in reversed(range(shape.layers)):
        prefix = f"blk.{layer}."
        key_width = shape.width // shape.heads * shape.kv_heads
        stack = (shape.experts,) if shape.experts else ()
        suffix = "_exps" if shape.experts else ""
        yield prefix + "attn_norm.weight", (shape.width,), F32
        yield prefix + "attn_q.weight", (shape.width, shape.width), shape.source
        yield prefix + "attn_k.weight", (shape.width, key_width), shape.source
        yield prefix + "attn_v.weight", (shape.width, key_width), shape.source
        yield prefix + "attn_output.weight", (shape.width, shape.width), shape.source
        yield prefix + f"ffn_gate{suffix}.weight", (shape.width, shape.hidden, *stack), shape.source
        yield prefix + f"ffn_up{suffix}.weight", (shape.width, shape.hidden, *stack), shape.source
        yield prefix + f"ffn_down{suffix}.weight", (shape.hidden, shape.width, *stack), shape.source
        yield prefix + "rope_factors.weight", (8, 1), F32
        if shape.experts:
            yield prefix + "ffn_gate_inp.weight", (shape.width, shape.experts), F32
    yield "token_embd.weight", (shape.width, shape.vocabulary), shape.source
    if not shape.tied:
        yield "output.weight", (shape.width, shape.vocabulary), shape.source


def metadata(name: str, shape: Shape) -> dict[str, MetadataValue]:
    """Keys as a converter writes them, and one of each kind of value that a rewrite could spoil."""
    tokens = [b"plain", "\u0120caf\u00e9".encode(), b"\xff\xfe not UTF-8", b"cut\0off", b""]
    tokens += [f"<{index}>".encode() for index in range(shape.vocabulary - len(tokens))]
    values = {
        "general.architecture": string_value("llama"),
        "general.name": string_value(f"Golden {name}"),
        "general.file_type": uint32_value({F32: 0, F16: 1, BF16: 32}[shape.source]),
        "general.quantization_version": uint32_value(1),
        "split.no": MetadataValue.scalar(ValueType.UINT16, 0),
        "llama.block_count": uint32_value(shape.layers),
        "llama.context_length": uint32_value(512),
        "llama.embedding_length": uint32_value(shape.width),
        "llama.feed_forward_length": uint32_value(shape.hidden),
        "llama.attention.head_count": uint32_value(shape.heads),
        "llama.attention.head_count_kv": MetadataValue.array(ValueType.INT32, [shape.kv_heads] * shape.layers),
        "llama.attention.layer_norm_rms_epsilon": MetadataValue.scalar(ValueType.FLOAT32, 1e-5),
        "llama.rope.dimension_count": uint32_value(shape.width // shape.heads),
        "tokenizer.ggml.model": string_value("gpt2"),
        "tokenizer.ggml.tokens": MetadataValue.array(ValueType.STRING, tokens),
        "tokenizer.ggml.scores": MetadataValue.array(ValueType.FLOAT32, [0.5] * shape.vocabulary),
        "test.int8": MetadataValue.scalar(ValueType.INT8, -1),
        "test.uint64": MetadataValue.scalar(ValueType.UINT64, 2**63),
        "test.float64": MetadataValue.scalar(ValueType.FLOAT64, 0.1),
        "test.flags": MetadataValue(ValueType.BOOL, True, 3, b"\0\1\2"),
        "test.nothing": MetadataValue.array(ValueType.STRING, []),
    }
    if shape.experts:
        values["llama.expert_count"] = uint32_value(shape.experts)
        values["llama.expert_used_count"] = uint32_value(2)
    return values


def to_type(values: NDArray[np.float32], ggml_type: GGMLType) -> NDArray[np.generic]:
    """float32 values in a float type of a GGUF file (BF16 by cutting: the values are short enough or may be)."""
    if ggml_type is BF16:
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(np.float16 if ggml_type is F16 else np.float32)


def build_model(path: Path, name: str, *, extra: dict[str, MetadataValue] | None = None) -> Path:
    """Write one of :data:`MODELS`, with ``extra`` metadata after its own."""
    shape = MODELS[name]
    tensors = []
    for tensor, extents, ggml_type in tensor_list(shape):
        data = to_type(bell(f"{name}/{tensor}", int(np.prod(extents))), ggml_type)
        tensors.append((TensorSpec(tensor, normal_shape(extents), ggml_type), data))
    write_gguf(path, {**metadata(name, shape), **(extra or {})}, tensors, durable=False)
    return path


def build_imatrix(path: Path, name: str) -> Path:
    """Write an importance matrix for a model as llama-imatrix would: one expert was never active."""
    tensors = []
    for tensor, extents, _ in sorted(tensor_list(MODELS[name])):
        if len(normal_shape(extents)) < 2 or not tensor.startswith("blk.") or "gate_inp" in tensor:
            continue
        matrices = extents[2] if len(extents) == 3 else 1
        counts = np.array([256.0 * index for index in range(matrices)] if matrices > 1 else [768.0], np.float32)
        sums = positive(f"{name}/{tensor}", matrices * extents[0]).reshape(matrices, extents[0]) * counts[:, None]
        tensors.append((TensorSpec(tensor + ".in_sum2", (extents[0], matrices), F32), sums.astype(np.float32)))
        tensors.append((TensorSpec(tensor + ".counts", (1, matrices), F32), counts))
    values = {
        "general.type": string_value("imatrix"),
        "imatrix.datasets": MetadataValue.array(ValueType.STRING, ["calibration.txt"]),
        "imatrix.chunk_count": uint32_value(3),
        "imatrix.chunk_size": uint32_value(256),
    }
    write_gguf(path, values, tensors, durable=False)
    return path

"""Tensors by name: broad categories that the rules speak of, and the names that are never quantized.

Data and plain lookups, after ``llama-quant.cpp`` of llama.cpp b11434. A fragment counts wherever it stands in a name:
``enc.blk.0.attn_v.weight`` and ``dec.blk.0.cross_attn_v.weight`` are value projections as ``blk.0.attn_v.weight`` is.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

from worker.models.gguf.metadata import TEXT_ERRORS


class Category(Enum):
    """What a tensor is, as far as the rules tell."""

    OUTPUT = "output"
    TOKEN_EMBEDDING = "token embedding"
    ATTENTION_V = "attention value"
    ATTENTION_K = "attention key"
    ATTENTION_Q = "attention query"
    ATTENTION_OUTPUT = "attention output"
    FFN_UP = "feed-forward up"
    FFN_GATE = "feed-forward gate"
    FFN_DOWN = "feed-forward down"
    OTHER = "other"


OUTPUT_NAME = "output.weight"
TOKEN_EMBEDDING_NAMES = ("token_embd.weight", "per_layer_token_embd.weight")

_CATEGORY_BY_FRAGMENT: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", Category.ATTENTION_V),
    ("attn_kv_b.weight", Category.ATTENTION_V),
    ("attn_v.weight", Category.ATTENTION_V),
    ("attn_k.weight", Category.ATTENTION_K),
    ("attn_q.weight", Category.ATTENTION_Q),
    ("attn_output.weight", Category.ATTENTION_OUTPUT),
    ("ffn_up", Category.FFN_UP),
    ("ffn_gate", Category.FFN_GATE),
    ("ffn_down", Category.FFN_DOWN),
)
"""First match wins. Fused projections that hold the values count as value projections."""

_NEVER_QUANTIZED: tuple[str, ...] = (
    # norms and routing
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    # small or sensitive parts of single families
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    # RWKV
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    # T5
    "attn_rel_b.weight",
    # vision and audio
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)

_NEVER_QUANTIZED_NAMES = ("position_embd.weight", "token_types.weight")

_NEVER_QUANTIZED_IN: dict[str, tuple[str, ...]] = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}
"""Further fragments by architecture."""

_AT_LEAST_Q8_0_IN: dict[str, tuple[str, ...]] = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}

_REMEMBERED = 1 << 16  # answers kept: a model's names are asked about once per quant type

_SUFFIX = "weight"
_BLOCK_NUMBER = re.compile(r"blk\.[ \t\n\v\f\r]*([+-]?[0-9]+)", re.ASCII)


@lru_cache(_REMEMBERED)
def category_of(name: str) -> Category:
    """The category of a tensor."""
    if name == OUTPUT_NAME:
        return Category.OUTPUT
    if name in TOKEN_EMBEDDING_NAMES:
        return Category.TOKEN_EMBEDDING
    return next((category for fragment, category in _CATEGORY_BY_FRAGMENT if fragment in name), Category.OTHER)


@lru_cache(_REMEMBERED)
def may_be_quantized(architecture: str, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a quant type changes this tensor's type at all; the others keep theirs, also in F32, F16 and BF16 files.

    Args:
        architecture: ``general.architecture``.
        name: Tensor name.
        shape: Without trailing ones: a tensor needs two dimensions.
    """
    # A name of five bytes passes too: llama.cpp compares positions, and "not found" equals "length less six" there.
    if len(shape) < 2 or not (name.endswith(_SUFFIX) or len(name.encode("utf-8", TEXT_ERRORS)) == len(_SUFFIX) - 1):
        return False
    fragments = (*_NEVER_QUANTIZED, *_NEVER_QUANTIZED_IN.get(architecture, ()))
    return name not in _NEVER_QUANTIZED_NAMES and not any(fragment in name for fragment in fragments)


def wants_q8_0(architecture: str, name: str) -> bool:
    """Whether this tensor is Q8_0 in every quantized file, as llama.cpp has it for one architecture."""
    return any(fragment in name for fragment in _AT_LEAST_Q8_0_IN.get(architecture, ()))


def block_number(name: str) -> int | None:
    """The number in ``blk.N.``; None for names that do not begin so. A sign or spaces before it are read as C does."""
    match = _BLOCK_NUMBER.match(name)
    return int(match[1]) if match else None


@lru_cache(_REMEMBERED)
def processing_key(name: str) -> tuple[int, bytes]:
    """Sort key of the order in which tensors are decided and written: by layer, then by name, byte by byte."""
    number = block_number(name)
    return (-1 if number is None else number, name.encode("utf-8", TEXT_ERRORS))

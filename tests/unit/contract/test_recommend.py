"""Recommending quant types: sums by hand for an 8B Llama, and what happens when the usual choice does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.recommend import (
    GIB,
    QUALITY,
    QUALITY_WORDS,
    TARGETS,
    Target,
    parse_target,
    recommend,
    shape_of,
)

Q = QuantType
LLAMA_8B = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.vocab_size": 128_256,
    "llama.context_length": 131_072,
}
SIZES = {quant: int(8.03e9 * info.bits_per_weight / 8) for quant, info in QUANT_TYPES.items()}


def marked(target: str, context: int = 4096) -> list[str]:
    found = recommend(shape_of(LLAMA_8B), SIZES, parse_target(target, 32 * GIB), context)
    return [choice.quant_type.value for choice in found.choices if choice.recommended]


def test_the_cache_of_a_known_model_is_the_known_one() -> None:
    # 32 layers x 8 KV heads x (128 + 128) x 2 bytes = 131072 bytes a token; 1 GiB at 8192
    assert shape_of(LLAMA_8B).cache_bytes(8192) == GIB
    assert shape_of(LLAMA_8B).buffer_bytes() == 512 * (128_256 + 32_768) * 4


def cache_of(architecture: str, context: int, **values: object) -> int:
    shape = {"block_count": 6, "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2}
    named = {f"{architecture}.{key}": value for key, value in (shape | values).items()}
    return shape_of({"general.architecture": architecture} | named).cache_bytes(context)


def test_a_layer_with_a_window_keeps_no_more_than_the_window() -> None:
    layer = 2 * (16 + 16) * 2  # bytes a token: KV heads x (key + value) x 2
    window = {"attention.sliding_window": 1024}
    assert cache_of("gemma3", 32_768, **window) == layer * (32_768 + 5 * (1024 + 512))
    assert cache_of("gemma3", 1000, **window) == layer * 6 * 1000
    assert cache_of("gemma2", 32_768, **window) == layer * 3 * (32_768 + 1024 + 512)
    pattern = {"attention.sliding_window_pattern": [True, True, False, True, True, False]}
    assert cache_of("olmo2", 32_768, **window, **pattern) == layer * (2 * 32_768 + 4 * (1024 + 512))
    assert cache_of("phi3", 32_768, **window) == layer * 6 * 32_768  # which layers have it is not known


def test_recurrent_layers_keep_nothing() -> None:
    layer = 2 * (16 + 16) * 2
    assert cache_of("qwen3next", 1000, full_attention_interval=3) == layer * 2 * 1000
    assert cache_of("granitehybrid", 1000, **{"attention.head_count_kv": [0, 0, 2, 0, 0, 0]}) == layer * 1000
    assert cache_of("mamba", 1000, **{"attention.head_count": 0, "attention.head_count_kv": 0}) == 0


@pytest.mark.parametrize(
    ("target", "types"),
    [
        ("gpu-24g", ["F16", "Q8_0"]),
        ("gpu-12g", ["Q5_K_M"]),
        ("gpu-8g", ["Q4_K_M"]),
        ("cpu", ["Q4_K_M", "Q3_K_M"]),
        ("mobile", ["IQ2_S"]),
        ("6GB", ["Q4_K_M"]),
        ("5 GiB", ["IQ4_XS"]),
        ("100g", ["F16"]),
    ],
)
def test_what_is_usual_for_a_place_is_recommended_as_far_as_it_fits(target: str, types: list[str]) -> None:
    assert marked(target) == types


def test_a_long_context_takes_its_memory_and_changes_the_choice() -> None:
    assert marked("gpu-8g", 8192) == ["Q4_K_M"]
    # 8.59 GB - 4.29 GB of cache - 0.33 GB of buffers leave 3.97 GB: Q3_K_M takes 4.02, IQ3_M 3.77
    assert marked("gpu-8g", 32_768) == ["IQ3_M"]
    found = recommend(shape_of(LLAMA_8B), SIZES, parse_target("gpu-8g", 0), 1_000_000)
    assert found.best_fitting is None
    assert not any(choice.fits or choice.recommended for choice in found.choices)


def test_rows_add_up_and_stand_from_best_to_worst() -> None:
    found = recommend(shape_of(LLAMA_8B), SIZES, parse_target("gpu-12g", 0), 4096)
    assert {choice.quant_type for choice in found.choices} == set(QuantType)
    qualities = [choice.quality for choice in found.choices]
    assert qualities == sorted(qualities, reverse=True)
    for choice in found.choices:
        assert choice.file_bytes == SIZES[choice.quant_type]
        assert choice.memory_bytes == choice.file_bytes + found.cache_bytes + found.buffer_bytes
        assert choice.fits == (choice.memory_bytes <= 12 * GIB)
    assert found.best_fitting is Q.Q8_0


def test_every_type_has_a_quality_and_every_target_knows_its_types() -> None:
    assert set(QUALITY) == set(QuantType)
    assert len({info.quality_rank for info in QUANT_TYPES.values()}) == len(QuantType), "two types have one rank"
    assert set(QUALITY.values()) == set(range(len(QUALITY_WORDS)))
    assert list(TARGETS) == ["gpu-24g", "gpu-12g", "gpu-8g", "cpu", "mobile"]
    assert parse_target("CPU", 7).memory_bytes == 7


@pytest.mark.parametrize("text", ["", "gpu", "gpu-16g", "0GB", "-3GB", "6", "6 bananas", "1e9GB", "gpu-24"])
def test_a_target_that_is_none_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(PackagingError, match="target") as caught:
        parse_target(text, 0)
    assert caught.value.code is ErrorCode.REQUEST_INVALID
    assert "gpu-24g" in caught.value.remedy


@pytest.mark.parametrize(("text", "size"), [("6GB", 6e9), ("5.5GiB", 5.5 * GIB), ("512M", 512e6), ("1tb", 1e12)])
def test_a_size_is_a_target(text: str, size: float) -> None:
    assert parse_target(text, 0) == Target(name=text, memory_bytes=int(size), preferred=())


def test_layers_without_attention_and_unequal_heads_are_counted_each() -> None:
    hybrid = {
        "general.architecture": "hybrid",
        "hybrid.block_count": 4,
        "hybrid.embedding_length": 64,
        "hybrid.attention.head_count": [0, 4, 0, 4],
        "hybrid.attention.head_count_kv": [0, 2, 0, 1],
        "hybrid.attention.key_length": 24,
        "hybrid.attention.value_length": 16,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
    }
    shape = shape_of(hybrid)
    assert shape.cache_bytes(10) == 10 * 3 * 40 * 2
    assert shape.vocabulary == 3
    bare = shape_of({"general.architecture": "x", "x.block_count": 1})
    assert bare.cache_bytes(1000) == 0


@pytest.mark.parametrize("metadata", [{}, {"general.architecture": 7}, {"general.architecture": "llama"}])
def test_metadata_that_is_no_model_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(PackagingError) as caught:
        shape_of(metadata)
    assert caught.value.code is ErrorCode.GGUF_INVALID

"""Rules that no recorded model shows, worked out by hand from llama-quant.cpp of llama.cpp b11434."""

from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from worker.models.gguf.metadata import MetadataValue, ValueType, string_value, uint32_value
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.mixture.model import ModelFacts, facts_from_values, model_facts
from worker.models.mixture.names import block_number, category_of, may_be_quantized, processing_key
from worker.models.mixture.policy import choose_mixture

Q, T = QuantType, GGMLType


def spec(name: str, *shape: int, kind: GGMLType = T.F16) -> TensorSpec:
    return TensorSpec(name, shape or (256, 256), kind)


def types(model: ModelFacts, quant: QuantType, *tensors: TensorSpec, has_imatrix: bool = False) -> list[str]:
    return [kind.name for kind in choose_mixture(model, tensors, quant, has_imatrix=has_imatrix).types]


def values(architecture: str, **keys: object) -> dict[str, object]:
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return {"general.architecture": architecture, **named}


DENSE = ModelFacts("llama", 8, heads_per_kv_head=1)


def test_layers_are_counted_not_read_in_dense_models() -> None:
    # eight layers: more bits for index 0 (first eighth), 7 (last eighth) and 3, 6 (every third from 1 on)
    downs = [spec(f"blk.{layer}.ffn_down.weight") for layer in (10, 11, 12, 13, 14, 15, 16, 17)]
    expected = ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert types(DENSE, Q.Q4_K_M, *downs) == expected


def test_layers_are_read_not_counted_with_experts() -> None:
    model = ModelFacts("llama", 8, expert_count=4)
    downs = [spec(f"blk.{layer}.ffn_down_exps.weight", 256, 64, 4) for layer in (7, 1, 3, 2)]
    assert types(model, Q.Q4_K_M, *downs) == ["Q6_K", "Q4_K", "Q6_K", "Q4_K"]


def test_a_layer_out_of_range_is_refused_with_experts_only() -> None:
    down = spec("blk.8.ffn_down_exps.weight", 256, 64, 4)
    assert types(DENSE, Q.Q4_K_M, down) == ["Q6_K"]
    for name in (down.name, "mtp.ffn_up.weight"):
        with pytest.raises(PackagingError) as caught:
            types(ModelFacts("llama", 8, expert_count=2), Q.Q4_K_M, spec(name))
        assert caught.value.code is ErrorCode.GGUF_INVALID
        assert caught.value.fields["tensor"] == name
    # the smallest types never look at layer numbers
    assert types(ModelFacts("llama", 8, expert_count=2), Q.IQ2_XXS, down, has_imatrix=True) == ["Q2_K"]


def test_file_order_does_not_matter_for_blk_names() -> None:
    values_ = [spec(f"blk.{layer}.attn_v.weight") for layer in (10, 2, 0, 1)]
    assert types(DENSE, Q.Q3_K_M, *values_) == ["Q4_K", "Q4_K", "Q5_K", "Q5_K"]


def test_names_outside_blk_are_decided_in_byte_order() -> None:
    values_ = [spec(f"enc.blk.{layer}.attn_v.weight") for layer in (2, 10, 0)]
    assert types(DENSE, Q.Q3_K_M, *values_) == ["Q4_K", "Q5_K", "Q5_K"]


@pytest.mark.parametrize("name", ["attn_v", "attn_qkv", "attn_kv_b", "cross_attn_v"])
def test_whatever_holds_values_counts_as_value_projection(name: str) -> None:
    assert types(DENSE, Q.Q3_K_L, spec(f"blk.0.{name}.weight")) == ["Q5_K"]


def test_exactly_eight_experts_is_a_rule_of_its_own() -> None:
    attention = [spec(f"blk.0.attn_{part}.weight") for part in ("k", "q", "v", "output")]
    by_count = {
        count: types(ModelFacts("llama", 8, expert_count=count), Q.Q4_K_S, *attention) for count in (0, 4, 7, 8, 9)
    }
    assert by_count[8] == ["Q8_0", "Q4_K", "Q8_0", "Q5_K"]
    assert {tuple(by_count[count]) for count in (0, 4, 7, 9)} == {("Q4_K", "Q4_K", "Q5_K", "Q4_K")}
    assert types(ModelFacts("falcon", 8, expert_count=8), Q.Q4_K_S, *attention)[3] == "Q4_K"


def test_four_experts_or_grouped_heads_raise_values_in_the_smallest_types() -> None:
    value = spec("blk.0.attn_v.weight")
    for model, expected in (
        (ModelFacts("llama", 8), "Q2_K"),
        (ModelFacts("llama", 8, expert_count=3), "Q2_K"),
        (ModelFacts("llama", 8, expert_count=4), "Q4_K"),
        (ModelFacts("llama", 8, heads_per_kv_head=4), "Q4_K"),
        (ModelFacts("llama", 8, heads_per_kv_head=3), "Q2_K"),
    ):
        assert types(model, Q.IQ2_XS, value, has_imatrix=True) == [expected]


def test_70b_is_a_name() -> None:
    def is_70b(architecture: str, **keys: object) -> bool:
        return facts_from_values(values(architecture, **keys)).is_70b

    grouped = {"attention__head_count": 64, "attention__head_count_kv": 8}
    assert is_70b("llama", block_count=80, **grouped)
    assert is_70b("llama", block_count=81, nextn_predict_layers=1, **grouped)
    assert is_70b("llama-embed", block_count=80, **grouped)
    assert not is_70b("llama", block_count=80, attention__head_count=64)
    assert not is_70b("llama", block_count=80, expert_count=8, **grouped)
    assert not is_70b("llama", block_count=79, **grouped)
    assert not is_70b("mistral3", block_count=80, **grouped)
    for architecture, layers in (("qwen2", 80), ("olmo", 80), ("deci", 80), ("jais2", 68)):
        assert is_70b(architecture, block_count=layers)
        assert not is_70b(architecture, block_count=layers + 1)
    model = facts_from_values(values("qwen2", block_count=80))
    assert types(model, Q.Q3_K_S, spec("blk.0.attn_v.weight")) == ["Q5_K"]
    assert types(model, Q.Q5_K_S, spec("blk.0.attn_v.weight")) == ["Q5_K"]
    assert types(model, Q.Q3_K_S, spec("blk.0.attn_k.weight")) == ["Q3_K"]


def test_facts_are_those_of_the_first_layer_and_of_the_loops() -> None:
    assert facts_from_values(values("deci", block_count=2, attention__head_count=[8, 4])).heads_per_kv_head == 1
    keys = {"attention__head_count": 32, "attention__head_count_kv": [8, 0]}
    assert facts_from_values(values("jamba", block_count=2, **keys)).heads_per_kv_head == 4
    keys["attention__head_count_kv"] = [0, 8]
    assert facts_from_values(values("jamba", block_count=2, **keys)).heads_per_kv_head == 0
    assert facts_from_values(values("mamba", block_count=2)) == ModelFacts("mamba", 2)
    assert facts_from_values(values("nanbeige", block_count=3, num_loops=2)).block_count == 6
    assert facts_from_values(values("llama", block_count=3, num_loops=2)).block_count == 3
    assert facts_from_values(values("graniteswitch", block_count=40)).block_count == 41
    assert facts_from_values({"general.architecture": "clip"}) == ModelFacts("clip", 0)


def test_facts_are_read_from_typed_metadata() -> None:
    metadata = {
        "general.architecture": string_value("llama"),
        "llama.block_count": uint32_value(80),
        "llama.attention.head_count": uint32_value(64),
        "llama.attention.head_count_kv": MetadataValue.array(ValueType.INT32, [8] * 80),
        "llama.expert_count": uint32_value(0),
    }
    assert model_facts(metadata) == ModelFacts("llama", 80, 0, 8, True)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"general.architecture": ""},
        {"general.architecture": 7},
        {"general.architecture": "llama"},
        values("llama", block_count=0),
        values("llama", block_count="many"),
        values("llama", block_count=2, expert_count=-1),
        values("llama", block_count=2, attention__head_count=[1.5]),
    ],
)
def test_metadata_that_cannot_be_understood_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(PackagingError) as caught:
        facts_from_values(broken)
    assert caught.value.code is ErrorCode.GGUF_INVALID


def test_output_and_tied_embeddings() -> None:
    embedding, output = spec("token_embd.weight"), spec("output.weight")
    assert types(DENSE, Q.Q4_K_M, embedding) == ["Q6_K"]
    assert types(DENSE, Q.Q4_K_M, embedding, output) == ["Q4_K", "Q6_K"]
    assert types(DENSE, Q.Q8_0, output) == ["Q8_0"]
    assert types(DENSE, Q.IQ3_XXS, embedding, output, has_imatrix=True) == ["IQ3_S", "Q5_K"]
    assert types(DENSE, Q.IQ1_S, embedding, output, has_imatrix=True) == ["Q2_K", "Q5_K"]
    assert types(ModelFacts("falcon", 8), Q.Q4_K_M, output) == ["Q8_0"]
    # the length of a row is held against the default type: 288 fits blocks of 32, so Q4_0 files keep Q6_K as a wish
    assert types(DENSE, Q.Q4_K_M, spec("output.weight", 288, 4)) == ["Q8_0"]
    assert types(DENSE, Q.Q4_0, spec("output.weight", 288, 4)) == ["Q8_0"]
    assert types(DENSE, Q.Q4_0, spec("output.weight", 300, 4)) == ["F16"]


@pytest.mark.parametrize(
    ("quant", "length", "expected"),
    [
        (Q.Q2_K, 96, "Q4_0"),
        (Q.Q3_K_S, 96, "Q4_0"),
        (Q.Q4_K_S, 96, "Q5_0"),
        (Q.Q5_K_S, 96, "Q5_1"),
        (Q.Q6_K, 96, "Q8_0"),
        (Q.IQ4_XS, 96, "IQ4_NL"),
        (Q.IQ3_S, 96, "IQ4_NL"),
        (Q.IQ1_M, 96, "IQ4_NL"),
        (Q.Q4_K_S, 100, "F16"),
        (Q.Q8_0, 100, "F16"),
        (Q.Q4_K_S, 512, "Q4_K"),
    ],
)
def test_rows_that_do_not_fit_fall_back(quant: QuantType, length: int, expected: str) -> None:
    tensor = spec("blk.0.ssm_in.weight", length, 4)
    mixture = choose_mixture(DENSE, [tensor], quant, has_imatrix=True)
    assert [kind.name for kind in mixture.types] == [expected]
    assert mixture.fallback_count == (length != 512)


def test_what_is_never_quantized_keeps_its_type_also_in_float_files() -> None:
    kept = [
        spec("blk.0.attn_norm.weight", 256, kind=T.F32),
        spec("blk.0.attn_q.bias", 256, 2, kind=T.F32),
        spec("blk.0.some.weight", 256, 1, 1, kind=T.F32),
        spec("blk.0.ffn_gate_inp.weight", kind=T.F32),
        spec("blk.0.ssm_conv1d.weight", kind=T.F32),
        spec("position_embd.weight", kind=T.BF16),
        spec("v.position_embd.weight", kind=T.BF16),
        spec("token_types.weight", kind=T.F32),
        spec("v.patch_embd.weight", 14, 14, 3, 8, kind=T.F32),
    ]
    for quant in (Q.Q4_0, Q.F16, Q.F32):
        assert types(DENSE, quant, *kept) == [tensor.type.name for tensor in kept]
    assert types(DENSE, Q.BF16, spec("enc.position_embd.weights"), spec("blk.0.x.weight")) == ["F16", "BF16"]


def test_a_name_of_five_bytes_counts_as_a_weight() -> None:
    assert may_be_quantized("llama", "sinks", (4, 4))
    assert not may_be_quantized("llama", "sinks", (4,))
    assert not may_be_quantized("llama", "sink", (4, 4))
    assert not may_be_quantized("llama", "sinks6", (4, 4))


def test_one_architecture_keeps_some_tensors_and_never_goes_below_q8_0() -> None:
    model = ModelFacts("glm5-next", 8)
    names = ("attn_q_a", "attn_q_b", "hc_attn", "indexer.proj", "attn_kv_a_mqa", "attn_k_b")
    tensors = [spec(f"blk.0.{name}.weight") for name in names]
    assert types(model, Q.Q4_K_M, *tensors) == ["Q8_0", "Q8_0", "F16", "F16", "F16", "F16"]
    assert types(model, Q.BF16, *tensors) == ["BF16", "BF16", "F16", "F16", "F16", "F16"]
    assert types(DENSE, Q.Q4_K_M, *tensors) == ["Q4_K"] * 6


def test_matrix_needs_follow_the_chosen_type_and_spare_embeddings() -> None:
    def needs(quant: QuantType, *tensors: TensorSpec) -> list[tuple[str, str]]:
        found = choose_mixture(DENSE, tensors, quant, has_imatrix=False).imatrix_needs
        return [(need.tensor, need.type.name) for need in found]

    down, query, embedding = spec("blk.1.ffn_down.weight"), spec("blk.0.attn_q.weight"), spec("token_embd.weight")
    output = spec("output.weight")
    assert needs(Q.Q2_K_S, down, query, embedding, output) == [("blk.0.attn_q.weight", "Q2_K")]
    assert needs(Q.Q2_K, down, query, embedding, output) == []
    assert needs(Q.IQ3_XS, down, query, embedding) == [("blk.0.attn_q.weight", "IQ3_XXS")]
    assert needs(Q.IQ1_S, down, embedding, output) == []  # the first ffn_down is Q2_K
    assert needs(Q.IQ1_S, down, spec("blk.2.ffn_down.weight")) == [("blk.2.ffn_down.weight", "IQ1_S")]
    assert needs(Q.IQ2_M, spec("blk.0.ffn_up.weight", 96, 4)) == []  # falls back to IQ4_NL


def test_an_imatrix_changes_some_choices() -> None:
    down = spec("blk.0.ffn_down.weight")
    assert types(DENSE, Q.Q4_0, down) == ["Q4_0"]
    assert types(DENSE, Q.Q4_0, down, has_imatrix=True) == ["Q4_1"]
    assert types(DENSE, Q.IQ4_XS, down) == ["Q5_K"]
    assert types(DENSE, Q.IQ4_XS, down, has_imatrix=True) == ["IQ4_XS"]


def test_block_numbers_are_read_as_c_reads_them() -> None:
    assert [block_number(name) for name in ("blk.7.x", "blk.12x", "blk.-3.x", "blk. 4.x", "blk.x", "ablk.1.x")] == [
        7,
        12,
        -3,
        4,
        None,
        None,
    ]


def test_processing_order_is_by_layer_then_bytes() -> None:
    names = ["blk.10.a", "blk.2.b", "blk.2.B", "token_embd.weight", "\u00e9.weight", "output.weight"]
    ordered = ["output.weight", "token_embd.weight", "\u00e9.weight", "blk.2.B", "blk.2.b", "blk.10.a"]
    assert sorted(names, key=processing_key) == ordered


def test_the_first_fragment_decides_the_category() -> None:
    assert category_of("blk.0.ffn_gate_up_exps.weight").value == "feed-forward gate"
    assert category_of("blk.0.ffn_up_shexp.weight").value == "feed-forward up"
    assert category_of("blk.0.attn_q_norm.weight").value == "other"

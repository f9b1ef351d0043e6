"""Allocations against every mixture there is, and what a fit means for a model."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import FitType
from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import GIB, ModelShape
from api_client.contract.tensor_types import type_set
from worker.models.fit.allocate import Market, allocate, allocate_to_kld, curve
from worker.models.fit.groups import together
from worker.models.fit.knapsack import Option, choose
from worker.models.fit.prices import Prices, TensorPrice
from worker.models.fit.solve import FitProblem
from worker.models.fit.space import FitLimit, FitSpace
from worker.models.gguf.metadata import string_value, uint32_value
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType, tensor_bytes
from worker.models.mixture.model import ModelFacts
from worker.models.mixture.plan import plan_output
from worker.models.mixture.policy import choose_mixture
from worker.models.mixture.recipe import Recipe

_NUMBERS = st.integers(0, 12)


@settings(max_examples=300, deadline=None)
@given(
    groups=st.lists(st.lists(st.tuples(_NUMBERS, _NUMBERS), min_size=1, max_size=4), min_size=1, max_size=5),
    limit=st.integers(0, 60),
)
@example(groups=[[(1, 0)], [(9, 0)], [(0, 11), (4, 9), (6, 0)], [(3, 9), (6, 0)]], limit=20)
def test_no_choice_is_better_than_the_chosen_one(groups: list[list[tuple[int, int]]], limit: int) -> None:
    options = [[Option(*option) for option in group] for group in groups]
    sums = [
        (sum(option.cost for option in picks), sum(option.weight for option in picks))
        for picks in itertools.product(*options)
    ]
    best = min((each for each in sums if each[1] <= limit), default=None)
    found = choose(options, limit)
    assert (None if found is None else (found.cost, found.weight)) == best
    if found is not None:
        assert found.is_optimal
        assert sum(group[pick].cost for group, pick in zip(options, found.picks, strict=True)) == found.cost


def test_a_large_choice_is_solved_to_the_optimum_and_always_the_same() -> None:
    generator = random.Random(5)
    sizes = [generator.choice([4096, 16384, 65536]) for _ in range(400)]
    loss = [generator.lognormvariate(0, 1.5) for _ in range(400)]
    groups = [
        [Option(size * bits, weight * 4**-bits * size) for bits in (2.625, 3.4375, 4.5, 5.5, 6.5625, 8.5)]
        for size, weight in zip(sizes, loss, strict=True)
    ]
    limit = int(4.7 * sum(sizes))
    found = choose(groups, limit)
    assert found is not None
    assert found.is_optimal
    assert limit - found.weight < 4096
    assert found.bound <= found.cost < found.bound * 1.001
    assert choose(groups, limit) == found


LAYERS = 8
FACTS = ModelFacts("llama", LAYERS, 0, 2)


def model_tensors(width: int = 512) -> tuple[TensorSpec, ...]:
    found = [TensorSpec("token_embd.weight", (width, 1000), GGMLType.F16)]
    for layer in range(LAYERS):
        found += [
            TensorSpec(f"blk.{layer}.attn_norm.weight", (width,), GGMLType.F32),
            TensorSpec(f"blk.{layer}.attn_q.weight", (width, width), GGMLType.F16),
            TensorSpec(f"blk.{layer}.attn_v.weight", (width, 128), GGMLType.F16),
            TensorSpec(f"blk.{layer}.ffn_gate.weight", (width, 1024), GGMLType.F16),
            TensorSpec(f"blk.{layer}.ffn_up.weight", (width, 1024), GGMLType.F16),
            TensorSpec(f"blk.{layer}.ffn_down.weight", (1024, width), GGMLType.F16),
        ]
    return (*found, TensorSpec("output_norm.weight", (width,), GGMLType.F32))


def fit_space(allowed: str = "k", recipe: Recipe | None = None, width: int = 512, **shape: Any) -> FitSpace:
    dimensions = ModelShape(
        architecture="llama", kv_heads=(2,) * LAYERS, key_length=64, value_length=64, embedding_length=width,
        vocabulary=1000, **shape,
    )  # fmt: skip
    return FitSpace(FACTS, model_tensors(width), 12_000, 32, type_set(allowed), recipe or Recipe(), dimensions)


def price_list(space: FitSpace, types: str = "all") -> Prices:
    """Prices that fall by four for every bit, of tensors that matter more or less."""
    generator = np.random.default_rng(1)
    rows = []
    for tensor in space.tensors:
        if len(tensor.shape) > 1:
            loss = float(generator.lognormal(0, 2))
            fitting = [GGMLType[name] for name in (*type_set(types), "F16")]
            sizes = {
                kind.name: tensor_bytes(kind, tensor.shape)
                for kind in fitting
                if tensor.shape[0] % kind.block_length == 0
            }
            bits = {name: 8 * size / tensor.element_count for name, size in sizes.items()}
            rows.append(
                TensorPrice(tensor.name, tensor.shape, sizes, {name: loss * 4 ** -bits[name] for name in sizes})
            )
    return Prices(tuple(rows))


def problem(fit: str, space: FitSpace | None = None, context: int = 4096) -> FitProblem:
    space = space or fit_space()
    kind = FitType(fit)
    return FitProblem(space, price_list(space), kind, space.limit_of(kind, context, 64 * GIB))


def test_sizes_are_those_of_the_planned_file() -> None:
    space = fit_space()
    metadata = {"general.architecture": string_value("llama"), "x": uint32_value(1)}
    for kind in (QuantType.Q4_K_M, QuantType.Q2_K, QuantType.F16):
        mixture = choose_mixture(FACTS, space.tensors, kind, has_imatrix=True)
        plan = plan_output(metadata, space.tensors, mixture)
        assert plan.size_bytes == space.size_of(space.types_of(kind)) - space.header_bytes + len(plan.header)


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_M", "Q3_K_M", "Q2_K"])
def test_like_a_type_is_no_larger_and_predicted_better(kind: str) -> None:
    asked = problem(f"fit:like:{kind}")
    stock = asked.stock()
    assert stock is not None
    assert stock.file_type is QuantType(kind)
    fitted = asked.allocated()
    assert fitted.size_bytes <= stock.size_bytes == asked.limit.size_bytes
    assert fitted.kld < stock.kld
    assert asked.best() == fitted
    for layer in range(LAYERS):
        assert fitted.types[f"blk.{layer}.ffn_gate.weight"] is fitted.types[f"blk.{layer}.ffn_up.weight"]
    assert fitted.types["blk.0.attn_norm.weight"] is GGMLType.F32
    assert set(fitted.types.values()) <= {GGMLType[name] for name in type_set("k")} | {GGMLType.F32}


def test_bits_per_weight_leave_out_header_and_padding() -> None:
    asked = problem("fit:4.5bpw")
    fitted = asked.allocated()
    bits = 8 * asked.space.size_of(fitted.types, padded=False) / asked.space.elements
    assert 4.48 < bits <= 4.5


def test_to_a_divergence_the_smallest_file() -> None:
    loose, strict = problem("fit:kld:0.05").allocated(), problem("fit:kld:0.005").allocated()
    assert loose.kld <= 0.05
    assert strict.kld <= 0.005
    assert loose.size_bytes < strict.size_bytes
    market = problem("fit:kld:0.05").market
    same = allocate_to_kld(market, 0.05)
    assert same is not None
    smaller = allocate(market, same.size_bytes - 32)
    assert smaller is not None
    assert smaller.kld > 0.05


def test_a_target_holds_file_cache_and_buffers() -> None:
    space = fit_space()
    assert space.shape is not None
    asked = problem("fit:target:20MB", space, context=128)
    assert asked.limit.size_bytes == 20_000_000 - space.shape.cache_bytes(128) - space.shape.buffer_bytes()
    with pytest.raises(PackagingError, match="left for the file") as caught:
        problem("fit:target:20MB", space, context=8192)
    assert caught.value.code is ErrorCode.FIT_IMPOSSIBLE
    whole = problem("fit:target:gpu-8g", space).limit.size_bytes
    assert whole == space.size_of(space.types_of(QuantType.F16)), "there is room for all of it"


@pytest.mark.parametrize(
    ("fit", "allowed"),
    [("fit:1MB", "k"), ("fit:1GB", "k"), ("fit:2bpw", "k"), ("fit:17bpw", "k"), ("fit:like:Q2_K", "Q5_K")],
)
def test_what_no_file_can_keep_is_refused_with_the_range(fit: str, allowed: str) -> None:
    with pytest.raises(PackagingError, match="there are files from") as caught:
        problem(fit, fit_space(allowed))
    error = caught.value
    assert error.code is ErrorCode.FIT_IMPOSSIBLE
    assert not error.fields["smallest_bytes"] <= error.fields["limit_bytes"] <= error.fields["largest_bytes"]


def test_tensors_kept_at_a_type_are_not_chosen_for() -> None:
    from api_client.contract.recipe import RecipeOptions

    kept = Recipe.of(RecipeOptions(tensor_types=("attn_v=q8_0",), token_embedding_type="Q6_K"))
    fitted = problem("fit:like:Q4_K_M", fit_space(recipe=kept)).allocated()
    assert {fitted.types[f"blk.{layer}.attn_v.weight"] for layer in range(LAYERS)} == {GGMLType.Q8_0}
    assert fitted.types["token_embd.weight"] is GGMLType.Q6_K


def test_rows_that_blocks_do_not_divide_get_what_llama_quantize_falls_back_to() -> None:
    space = fit_space(width=288)
    fitted = problem("fit:like:Q4_K_M", space).allocated()
    narrow = {fitted.types[tensor.name] for tensor in space.free if tensor.shape[0] == 288}
    assert narrow <= {GGMLType.Q4_0, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.Q8_0}
    again = choose_mixture(FACTS, space.tensors, fitted.file_type, has_imatrix=True, recipe=fitted.made.recipe)
    assert dict(zip((tensor.name for tensor in space.tensors), again.types, strict=True)) == fitted.types
    assert again.fallback_count == 0


def test_the_curve_falls_and_starts_at_the_smallest() -> None:
    space = fit_space()
    found = curve(Market(price_list(space), space.allowed), 12)
    assert len(found) == 12
    assert [each.size_bytes for each in found] == sorted(each.size_bytes for each in found)
    assert [each.kld for each in found] == sorted((each.kld for each in found), reverse=True)
    assert set(found[0].types.values()) == {"Q2_K"}
    assert set(found[-1].types.values()) == {"Q8_0"}


def test_what_stays_together() -> None:
    names = ["blk.0.ffn_gate.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
    names += [f"blk.2.ffn_{kind}.{expert}.weight" for expert in (0, 1) for kind in ("down", "up", "gate")]
    names += ["blk.3.ffn_gate_exps.weight", "blk.3.ffn_up_exps.weight", "blk.3.ffn_up_shexp.weight"]
    assert together(names) == [(0, 2), (1,), (3,), (4, 7), (5, 6, 8, 9), (10, 11), (12,)]


def test_a_limit_with_room_for_all_takes_the_best_of_the_allowed() -> None:
    space = fit_space()
    fitted = FitProblem(space, price_list(space), FitType("fit:16bpw"), FitLimit(10**9, padded=False)).allocated()
    assert {fitted.types[tensor.name] for tensor in space.free} == {GGMLType.Q8_0}

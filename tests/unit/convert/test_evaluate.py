"""Evaluation of upstream's lazy tensors: the same bits as upstream's own, without its copies."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worker.models.convert.evaluate import Evaluator, Rounding
from worker.models.convert.plan import recognisable_rounding
from worker.models.convert.upstream import load_upstream
from worker.models.convert.weights import SharedTensors, WeightEntry

UPSTREAM = load_upstream()
GGUF, LAZY = UPSTREAM.gguf, UPSTREAM.conversion.LazyTorchTensor
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class Loads:
    """A weight; counts how often it is read."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.count = 0

    def __call__(self, name: str) -> torch.Tensor:
        self.count += 1
        return self.tensor

    def lazy(self, name: str = "w") -> Any:
        return LAZY.from_local_tensor(WeightEntry(name, NAMES[self.tensor.dtype], tuple(self.tensor.shape), self))


def evaluator() -> Evaluator:
    return Evaluator(GGUF.LazyBase, LAZY)


def written(tree: Any, qtype: str, *, recognised: bool) -> np.ndarray:
    """What upstream registers for a torch tree: widened, handed to numpy, rounded."""
    quantize = recognisable_rounding(UPSTREAM) if recognised else GGUF.quants.quantize
    array: np.ndarray = quantize(tree.numpy(), GGUF.GGMLQuantizationType[qtype])
    return array


def both(make_tree: Callable[..., Any], tensor: torch.Tensor, qtype: str) -> tuple[bytes, bytes, int]:
    """Bytes by us and by upstream of the same tree, and how often we read the weight."""
    ours, theirs = Loads(tensor), Loads(tensor)
    mine = evaluator().bytes_of(written(make_tree(ours.lazy()), qtype, recognised=True)).tobytes()
    reference = GGUF.LazyNumpyTensor.to_eager(written(make_tree(theirs.lazy()), qtype, recognised=False)).tobytes()
    return mine, reference, ours.count


MOVEMENTS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda w: w,
    "rows permuted": lambda w: w.reshape(4, 2, 4, 16).swapaxes(1, 2).reshape(32, 16),
    "transposed": lambda w: w.T,
    "cut": lambda w: w[4:12, ::2],
    "part of a split": lambda w: w.split([8, 24], dim=0)[1],
    "part of a chunk": lambda w: w.chunk(2, dim=-1)[0],
    "joined": lambda w: torch.cat([w[8:], w[:8]], dim=0),
    "stacked": lambda w: torch.stack([w, w.flip(0)]),
    "gathered": lambda w: w[torch.arange(31, -1, -1)],
    "unsqueezed": lambda w: w.unsqueeze(1).permute(1, 0, 2).squeeze(0),
}
COMPUTATIONS: dict[str, Callable[[Any], Any]] = {
    "plus one": lambda w: w + 1,
    "negated exponential": lambda w: -torch.exp(w),
    "scaled": lambda w: w * 0.3,
    "bits read as another type": lambda w: w.view(torch.int32).view(torch.float32),
    "sum": lambda w: w.sum(dim=1, keepdim=True).expand(32, 16).contiguous(),
}


def widened(tree: Any) -> Callable[..., Any]:
    return lambda w: tree(w.to(torch.float32))


@pytest.mark.parametrize("name", [*MOVEMENTS, *COMPUTATIONS])
@pytest.mark.parametrize("qtype", ["BF16", "F16", "F32"])
def test_bits_are_upstreams(name: str, qtype: str) -> None:
    tensor = torch.randn(32, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    ours, theirs, reads = both(widened((MOVEMENTS | COMPUTATIONS)[name]), tensor, qtype)
    assert ours == theirs
    assert reads == 1


def test_quantizing_is_left_to_upstream() -> None:
    tensor = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    ours, theirs, _ = both(widened(lambda w: w + 1), tensor, "Q8_0")
    assert ours == theirs


@pytest.mark.parametrize("name", MOVEMENTS)
def test_movements_never_widen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that only moves elements is not rounded, because it was never widened."""

    def no_rounding(_rounding: object, _values: object) -> None:
        raise AssertionError("rounded")

    monkeypatch.setattr(Rounding, "__call__", no_rounding)
    tensor = torch.randn(32, 16).to(torch.bfloat16)
    node = written(widened(MOVEMENTS[name])(Loads(tensor).lazy()), "BF16", recognised=True)
    evaluator().bytes_of(node)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("qtype", ["BF16", "F16"])
def test_rounding_of_every_corner(dtype: torch.dtype, qtype: str) -> None:
    """Ties, overflow, denormals, signed zeros, infinities and NaN of either sign."""
    values = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 65504.0, 65519.9, 65520.0, 3.4e38, 1e-45, 6e-8, 5.96e-8, 2.98e-8]
    values += [float("inf"), float("nan"), 1.1754943508e-38, 3.3895313892515355e38]
    tensor = torch.tensor([[*values, *[-value for value in values]]], dtype=torch.float32).to(dtype)
    with np.errstate(over="ignore"):
        ours, theirs, _ = both(widened(lambda w: w) if dtype is torch.float32 else (lambda w: w), tensor, qtype)
    assert ours == theirs


def test_weight_made_into_several_tensors_is_computed_once() -> None:
    computed: list[str] = []

    def compute(name: str) -> torch.Tensor:
        computed.append(name)
        return torch.zeros(1)

    shared = SharedTensors(["fused", "fused", "fused", "single"])
    first = shared.get("fused", compute)
    assert shared.get("fused", compute) is first
    shared.get("single", compute)
    assert shared.get("fused", compute) is first
    assert computed == ["fused", "single"]
    shared.get("fused", compute)
    assert computed == ["fused", "single", "fused"], "nothing is kept after the last use that was announced"


def test_sources_are_told_without_reading() -> None:
    first, second = Loads(torch.zeros(2, 2)), Loads(torch.zeros(2, 2))
    node = written(torch.stack([first.lazy("a"), second.lazy("b"), first.lazy("a")]), "F32", recognised=True)
    assert sorted(evaluator().sources(node)) == ["a", "a", "b"]
    assert (first.count, second.count) == (0, 0)


def test_arrays_that_upstream_computed_itself_pass_through() -> None:
    assert evaluator().bytes_of(np.array([1.5, 2.5], np.float32)).tobytes() == np.array([1.5, 2.5], "<f4").tobytes()


@pytest.mark.parametrize("name", ["nothing", "rows permuted", "plus one"])
def test_weights_are_let_go_without_the_garbage_collector(name: str) -> None:
    """A cycle anywhere in the evaluation would let tensors pile up until a collection."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def load(_name: str) -> torch.Tensor:
        tensor = torch.randn(32, 16).to(torch.bfloat16)
        alive.append(weakref.ref(tensor))
        return tensor

    lazy = LAZY.from_local_tensor(WeightEntry("w", "BF16", (32, 16), load))
    node = written(widened((MOVEMENTS | COMPUTATIONS)[name])(lazy), "BF16", recognised=True)
    gc.disable()
    try:
        data = evaluator().bytes_of(node)
        del data
        assert [reference() for reference in alive] == [None]
    finally:
        gc.enable()

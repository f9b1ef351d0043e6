"""llama.cpp's arithmetic: before a product with a stored weight it rounds the input to a type that fits the weight's.

On the CPU a weight in a K- or i-quant is multiplied with inputs in Q8_K (8 bits, a scale for each 256 values), one in
Q8_0, Q4_0, Q5_0 or IQ4_NL with inputs in Q8_0 (a scale for each 32 values), one in F16 or BF16 with inputs in that type
(``vec_dot_type`` in ``ggml-cpu.c`` of llama.cpp b11434). A file is used like this, so it is judged like this: at Q8_0
more than half of the divergence that ``llama-perplexity`` measures comes of the inputs and not of the weights.

No per-architecture hooks: every product is seen (:mod:`worker.models.imatrix.products`), and its input rounded along
the axis that the product sums. Left out, since they are of no file's making: the cache of keys and values, which
llama.cpp keeps in F16, and the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from worker.foreign import version_of
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.products import GROUPED, PRODUCTS, Product, argument_of, locate, storage_of


class Arithmetic(StrEnum):
    """How products with a file's weights are computed."""

    LLAMA_CPP = "llama.cpp"
    """Inputs rounded as llama.cpp rounds them on a CPU."""
    EXACT = "exact"
    """Inputs in float32: what the weights alone do."""


class InputType(StrEnum):
    """What an input is rounded to."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q8_K = "q8_k"


_OF_WEIGHT: Mapping[GGMLType, InputType | None] = {
    GGMLType.F32: None,
    GGMLType.F16: InputType.F16,
    GGMLType.BF16: InputType.BF16,
    # Q4_1 and Q5_1 take Q8_1, which is Q8_0 with the sum of each block beside it
    **dict.fromkeys(
        (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.Q8_0, GGMLType.IQ4_NL, GGMLType.MXFP4,
         GGMLType.NVFP4, GGMLType.Q1_0, GGMLType.Q2_0),
        InputType.Q8_0,
    ),
}  # fmt: skip
_BLOCK = {InputType.Q8_0: 32, InputType.Q8_K: 256}
_Q8_STEPS = 127.0


def coarseness(kind: InputType) -> int:
    """Larger where more values share a scale."""
    return _BLOCK.get(kind, 1)


def input_type(weight: GGMLType) -> InputType | None:
    """What llama.cpp rounds the inputs of a weight of this type to; None where it leaves them in float32."""
    return _OF_WEIGHT.get(weight, InputType.Q8_K)


def rounded(values: torch.Tensor, kind: InputType) -> torch.Tensor:
    """Values as they are after rounding, in their own dtype.

    Args:
        values: ``(…, channels)``; left as they are where blocks do not divide the channels, which no stored weight has.
        kind: What they are rounded to.
    """
    if kind is InputType.F16:
        return values.half().to(values.dtype)
    if kind is InputType.BF16:
        return values.bfloat16().to(values.dtype)
    block = _BLOCK[kind]
    if values.shape[-1] % block:
        return values
    blocks = values.float().reshape(*values.shape[:-1], -1, block)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / _Q8_STEPS
    steps = (blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    stored = scale.half().float() if kind is InputType.Q8_0 else scale
    return (steps * stored).reshape(values.shape).to(values.dtype)


class RoundedInputs(TorchFunctionMode):
    """Rounds the inputs of products with the weights that it was told of; all others pass as they are.

    Use it as a context manager in every thread that runs the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, list[tuple[torch.Tensor, InputType]]] = {}
        self._last: tuple[torch.Tensor, int, InputType, torch.Tensor] | None = None

    def use(self, weights: Iterable[tuple[torch.Tensor, InputType]]) -> None:
        """From now on these weights, and no others."""
        self._last = None
        self._weights = {}
        for tensor, kind in weights:
            self._weights.setdefault(storage_of(tensor), []).append((tensor, kind))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call, with its input rounded where it is a product with one of the weights."""
        named = dict(kwargs or {})
        product = PRODUCTS.get(func)
        if self._weights and product is not None:
            args, named = self._product(product, args, named)
        elif self._weights and func in GROUPED:
            kind = self._kind(args[1], -2)
            if kind is not None:
                args = (self._round(args[0], kind), *args[1:])
        return func(*args, **named)

    def _product(
        self, product: Product, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        left = argument_of(args, named, product.input_at, product.input_name)
        right = argument_of(args, named, product.weight_at, product.weight_name)
        if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
            return args, named
        kind = self._kind(right, product.axis)
        if kind is not None:
            return _replaced(args, named, product.input_at, product.input_name, self._round(left, kind))
        if product.axis == -2 and left.dim() >= 2:  # weight @ input, its channels one a row
            kind = self._kind(left, -1)
            if kind is not None:
                turned = self._round(right.transpose(-1, -2), kind).transpose(-1, -2)
                return _replaced(args, named, product.weight_at, product.weight_name, turned)
        return args, named

    def _kind(self, weight: torch.Tensor, axis: int) -> InputType | None:
        for parameter, kind in self._weights.get(storage_of(weight), ()):
            if locate("", parameter, weight, axis) is not None:
                return kind
        return None

    def _round(self, values: torch.Tensor, kind: InputType) -> torch.Tensor:
        """Rounded values; remembered, because q, k and v share their input."""
        last, version = self._last, version_of(values)
        if last is not None and last[0] is values and last[1:3] == (version, kind):
            return last[3]
        made = rounded(values, kind)
        self._last = (values, version, kind, made)
        return made


def _replaced(
    args: tuple[Any, ...], named: dict[str, Any], position: int, name: str, value: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), named
    return args, {**named, name: value}

"""Which calls of torch are products with a weight, and which weight it is.

A :class:`torch.overrides.TorchFunctionMode` sees each call of ``linear``, ``matmul``, ``addmm``, ``bmm`` and
``grouped_mm`` while a model runs. The weight is recognised by its storage: a view of a parameter (one expert of a fused
tensor, a transposed matrix) shares it; its offset says which matrix it is and its strides along which axis the product
sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from worker.foreign import private_grouped_mm


@dataclass(frozen=True)
class Product:
    """Where a function takes its input and its weight: argument positions, names, and the weight's summed axis."""

    input_at: int
    weight_at: int
    input_name: str
    weight_name: str
    axis: int


_LINEAR = Product(0, 1, "input", "weight", -1)
_MATMUL = Product(0, 1, "input", "other", -2)
_BMM = Product(0, 1, "input", "mat2", -2)
_ADDMM = Product(1, 2, "mat1", "mat2", -2)
_BADDBMM = Product(1, 2, "batch1", "batch2", -2)

PRODUCTS: Mapping[Callable[..., Any], Product] = {
    torch.nn.functional.linear: _LINEAR,
    torch.matmul: _MATMUL,
    torch.Tensor.matmul: _MATMUL,
    torch.Tensor.__matmul__: _MATMUL,
    torch.mm: _BMM,
    torch.Tensor.mm: _BMM,
    torch.bmm: _BMM,
    torch.Tensor.bmm: _BMM,
    torch.addmm: _ADDMM,
    torch.Tensor.addmm: _ADDMM,
    torch.baddbmm: _BADDBMM,
    torch.Tensor.baddbmm: _BADDBMM,
}
GROUPED = frozenset(
    function
    for function in (getattr(torch.nn.functional, "grouped_mm", None), private_grouped_mm())
    if function is not None
)


@dataclass(frozen=True)
class WeightPlace:
    """Where in a registered parameter the weight of a product lies.

    Attributes:
        name: The parameter's name.
        parameter: The parameter.
        axis: Its axis along which the product sums: -1 for (out, in), -2 for (in, out).
        first: First matrix.
        count: Number of matrices.
        output: First output channel; a slice of a fused projection begins after others.
    """

    name: str
    parameter: torch.Tensor
    axis: int
    first: int
    count: int
    output: int


def argument_of(args: tuple[Any, ...], named: Mapping[str, Any], position: int, name: str) -> Any:
    """An argument of a call, given by position or by name; None where it is not given."""
    return args[position] if len(args) > position else named.get(name)


def storage_of(tensor: torch.Tensor) -> int:
    """What tensors that share their values have in common."""
    return tensor.untyped_storage().data_ptr()


def locate(name: str, parameter: torch.Tensor, view: torch.Tensor, axis: int) -> WeightPlace | None:
    """Which matrices of ``parameter`` a ``view`` of its storage covers, and the parameter's summed axis.

    Args:
        name: The parameter's name.
        parameter: ``(out, in)``, ``(in, out)``, or with a leading axis of matrices.
        view: What the product was given: two- or three-dimensional.
        axis: The axis of ``view`` that the product sums over.

    Returns:
        The place, or None if it is not a view over all channels.
    """
    if parameter.dim() > 3 or view.dim() not in (2, 3):
        return None
    strides = tuple(int(stride) for stride in parameter.stride())
    summed = [candidate for candidate in (-1, -2) if strides[candidate] == view.stride(axis)]
    fitting = [candidate for candidate in summed if parameter.shape[candidate] == view.shape[axis]]
    if not fitting:
        return None
    start = _unravel(int(view.storage_offset() - parameter.storage_offset()), strides)
    # the view may start at another row (a slice of a fused projection), but at the first channel
    if start[fitting[0]] != 0:
        return None
    first, matrices = (start[0], parameter.shape[0]) if parameter.dim() == 3 else (0, 1)
    count = view.shape[0] if view.dim() == 3 else 1
    if not 0 <= first <= matrices - count or (count > 1 and view.stride(0) != strides[0]):
        return None
    return WeightPlace(name, parameter, fitting[0], first, count, output=start[-3 - fitting[0]])


def _unravel(offset: int, strides: tuple[int, ...]) -> list[int]:
    """Index of the element at ``offset``, largest stride first."""
    index = [0] * len(strides)
    for dimension in sorted(range(len(strides)), key=lambda item: -strides[item]):
        index[dimension], offset = divmod(offset, max(strides[dimension], 1))
    return index

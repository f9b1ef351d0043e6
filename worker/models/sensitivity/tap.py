"""The tap of the backward pass: squared gradients at the outputs of products, and at what embeddings look up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from worker.models.imatrix.products import WeightPlace
from worker.models.imatrix.tap import WeightTap


@dataclass
class OutputSums:
    """Squared gradients at the outputs of one parameter.

    Attributes:
        axis: Axis of the parameter along which its products sum: -1 for (out, in), -2 for (in, out).
        sums: Over tokens, float64 ``(m, out)``.
    """

    axis: int
    sums: torch.Tensor


@dataclass
class LookupSums:
    """What was looked up in an embedding: squared gradients at its entries, summed over sequences.

    An error in a row is the same wherever in a sequence the row is looked up, so the gradients of all these places are
    added up before they are squared.

    Attributes:
        rows: By row, over columns, float64 ``(rows,)``.
        columns: By column, over rows, float64 ``(columns,)``.
    """

    rows: torch.Tensor
    columns: torch.Tensor


class GradientTap(WeightTap):
    """Gathers gradients of what runs inside it, when that is gone through backward.

    Attributes:
        outputs: Parameter name -> sums over its outputs.
        lookups: Parameter name -> sums over its rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, OutputSums] = {}
        self.lookups: dict[str, LookupSums] = {}

    def multiplied(self, place: WeightPlace, result: torch.Tensor, axis: int) -> None:
        """Follow the result's gradient."""
        entry = self._entry(place)
        if entry is not None and result.requires_grad:
            on_gradient(result, partial(_add, entry, place, axis))

    def multiplied_groups(self, place: WeightPlace, result: torch.Tensor, ends: Sequence[int]) -> None:
        """Follow the gradient of each matrix's rows."""
        entry = self._entry(place)
        if entry is not None and result.requires_grad:
            on_gradient(result, partial(_add_groups, entry, place, ends))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """As of any tap; what an embedding gives becomes the beginning of a graph."""
        result = super().__torch_function__(func, types, args, kwargs)
        if func is not torch.nn.functional.embedding or not torch.is_grad_enabled():
            return result
        ids, weight = _lookup(*args, **dict(kwargs or {}))
        known = self.name_of(weight)
        if known is None or result.requires_grad:
            return result
        entry = self.lookups.get(known)
        if entry is None:
            rows, columns = weight.shape
            entry = LookupSums(*(torch.zeros(n, dtype=torch.float64, device=weight.device) for n in (rows, columns)))
            self.lookups[known] = entry
        looked_up: torch.Tensor = result.detach().requires_grad_()
        on_gradient(looked_up, partial(_add_lookup, entry, ids.detach()))
        return looked_up

    def _entry(self, place: WeightPlace) -> OutputSums | None:
        entry = self.outputs.get(place.name)
        if entry is None:
            shape = place.parameter.shape
            matrices, outputs = (shape[0] if len(shape) == 3 else 1), shape[-3 - place.axis]
            sums = torch.zeros(matrices, outputs, dtype=torch.float64, device=place.parameter.device)
            entry = self.outputs[place.name] = OutputSums(place.axis, sums)
        return entry if entry.axis == place.axis else None


def _lookup(
    input: torch.Tensor,  # noqa: A002 - the name that callers pass it by
    weight: torch.Tensor,
    *_rest: object,
    **_named: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weight of a call of ``torch.nn.functional.embedding``."""
    return input, weight


def on_gradient(tensor: torch.Tensor, call: Callable[[torch.Tensor], None]) -> None:
    """Call something with the gradient at a tensor, when autograd comes by."""
    tensor.register_hook(call)  # type: ignore[no-untyped-call]


def _add(entry: OutputSums, place: WeightPlace, axis: int, gradient: torch.Tensor) -> None:
    """One product's gradient ``(..., out)``, or ``(..., out, t)`` where ``axis`` is -2; ``(m, t, out)`` of several."""
    squares = gradient.detach().float().square()
    if axis == -2:
        squares = squares.transpose(-1, -2)
    several = place.count > 1 and squares.dim() == 3 and squares.shape[0] == place.count
    sums = squares.sum(dim=1) if several else squares.reshape(-1, squares.shape[-1]).sum(dim=0, keepdim=True)
    if several or place.count == 1:
        entry.sums[place.first : place.first + place.count, place.output : place.output + sums.shape[1]] += sums


def _add_groups(entry: OutputSums, place: WeightPlace, ends: Sequence[int], gradient: torch.Tensor) -> None:
    start = 0
    for matrix, end in enumerate(ends, place.first):
        entry.sums[matrix] += gradient[start:end].detach().float().square().sum(dim=0)
        start = end


def _add_lookup(entry: LookupSums, ids: torch.Tensor, gradient: torch.Tensor) -> None:
    """Gradients ``(sequences, tokens, columns)`` at what the ids ``(sequences, tokens)`` looked up."""
    width = gradient.shape[-1]
    places = gradient.detach().float().reshape(-1, ids.shape[-1], width)
    for sequence, own in zip(ids.reshape(-1, ids.shape[-1]), places, strict=True):
        rows, at = torch.unique(sequence, return_inverse=True)
        summed = torch.zeros(len(rows), width, device=own.device).index_add_(0, at, own)
        squares = summed.square()
        entry.rows.index_add_(0, rows, squares.sum(dim=1).double())
        entry.columns += squares.sum(dim=0).double()

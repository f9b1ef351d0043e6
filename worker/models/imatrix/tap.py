"""The taps: what flows through every weight that takes part in a matrix product; here, its squared inputs.

No per-architecture hooks: every product that torch makes is seen, and its weight recognised by its storage
(:mod:`worker.models.imatrix.products`).

Axes: ``m`` matrices (1 for a plain weight, experts for a fused one), ``c`` input channels, ``t`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from worker.foreign import version_of
from worker.models.imatrix.products import GROUPED, PRODUCTS, WeightPlace, argument_of, locate, storage_of


@dataclass
class Gathered:
    """What one parameter was multiplied with.

    Attributes:
        axis: Axis of the parameter along which its products sum: -1 for (out, in), -2 for (in, out).
        sums: Sums of squares, float64 ``(m, c)``.
        counts: Rows seen, int64 ``(m,)``.
        plain: Sums of the inputs themselves, float64 ``(m, c)``; None where they were not kept.
    """

    axis: int
    sums: torch.Tensor
    counts: torch.Tensor
    plain: torch.Tensor | None = None

    def add(self, matrices: int | slice, squares: torch.Tensor, plain: torch.Tensor) -> None:
        """Add sums over rows to those of one matrix or of several."""
        self.sums[matrices] += squares
        if self.plain is not None:
            self.plain[matrices] += plain


class WeightTap(TorchFunctionMode):
    """Recognises the products of registered parameters while a model runs, and shows them to its subclass.

    Use it as a context manager in the thread that runs the model. Parameters are registered while their storage
    exists and forgotten when it is freed (:meth:`register`, :meth:`forget`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._registered: dict[int, list[tuple[str, torch.Tensor]]] = {}

    def register(self, parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Watch these named parameters; those with fewer than two dimensions are no weights of products."""
        for name, parameter in parameters:
            if parameter.dim() >= 2:
                self._registered.setdefault(storage_of(parameter), []).append((name, parameter))

    def forget(self, prefix: str) -> None:
        """Drop the registrations, and with them the references, of the parameters whose names begin so."""
        for storage, members in list(self._registered.items()):
            kept = [member for member in members if not member[0].startswith(prefix)]
            if kept:
                self._registered[storage] = kept
            else:
                del self._registered[storage]

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """Name of the registered parameter that ``tensor`` is, as a whole."""
        members = self._registered.get(storage_of(tensor), ())
        return next((name for name, parameter in members if parameter.shape == tensor.shape), None)

    def multiplying(self, place: WeightPlace, activation: torch.Tensor) -> None:
        """A product is about to be made of ``activation (..., c)`` and the weight at ``place``."""

    def multiplied(self, place: WeightPlace, result: torch.Tensor, axis: int) -> None:
        """It was made; ``axis`` of the result counts output channels."""

    def multiplying_groups(self, place: WeightPlace, activation: torch.Tensor, ends: Sequence[int]) -> None:
        """As :meth:`multiplying`, of rows ``(t, c)`` sorted by matrix; ``ends`` of each matrix's rows."""

    def multiplied_groups(self, place: WeightPlace, result: torch.Tensor, ends: Sequence[int]) -> None:
        """As :meth:`multiplied`, for :meth:`multiplying_groups`: ``result (t, out)``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at the call, make it, look at its result."""
        named = dict(kwargs or {})
        product = PRODUCTS.get(func)
        if product is not None:
            activation = argument_of(args, named, product.input_at, product.input_name)
            weight = argument_of(args, named, product.weight_at, product.weight_name)
            if isinstance(activation, torch.Tensor) and isinstance(weight, torch.Tensor):
                place, axis = self._find(weight, product.axis), -1
                if place is None and product.axis == -2 and weight.dim() >= 2:  # weight @ input, its channels one a row
                    place, axis, activation = self._find(activation, -1), -2, weight.transpose(-1, -2)
                if place is not None:
                    self.multiplying(place, activation)
                    result = func(*args, **named)
                    self.multiplied(place, result, axis)
                    return result
        elif func in GROUPED:
            return self._grouped(func, args, named)
        return func(*args, **named)

    def _grouped(self, func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """``grouped_mm(input (t, c), weight (m, c, out), offs=(m,))``: rows sorted by matrix, ``offs`` their ends."""
        activation, weight = args[0], args[1]
        ends = named.get("offs", args[2] if len(args) > 2 else None)
        place = self._find(weight, -2)
        if place is None or ends is None or activation.dim() != 2:
            return func(*args, **named)
        listed = ends.tolist()[: place.count]
        self.multiplying_groups(place, activation, listed)
        result = func(*args, **named)
        self.multiplied_groups(place, result, listed)
        return result

    def _find(self, weight: torch.Tensor, axis: int) -> WeightPlace | None:
        """The registered parameter that ``weight`` is a view of, and where in it.

        Views over part of the channels are not recognised: their sums would need a count of their own.
        """
        for name, parameter in self._registered.get(storage_of(weight), ()):
            place = locate(name, parameter, weight, axis)
            if place is not None:
                return place
        return None


class ActivationTap(WeightTap):
    """Gathers, for every registered parameter, the squared inputs of its products; what was gathered stays.

    Attributes:
        gathered: Parameter name -> sums and counts; a parameter that took part in no product is absent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gathered: dict[str, Gathered] = {}
        self._last_input: tuple[torch.Tensor, int] | None = None
        self._last_sums = (torch.empty(0), torch.empty(0))

    def forget(self, prefix: str) -> None:
        """As of any tap, and the last input with them."""
        super().forget(prefix)
        self._last_input = None

    def multiplying(self, place: WeightPlace, activation: torch.Tensor) -> None:
        """Add up the squares of the input."""
        entry = self._entry(place)
        if entry is None:
            return
        first, count, channels = place.first, place.count, activation.shape[-1]
        if count == 1:
            entry.add(first, *self._sums(activation))
            entry.counts[first] += activation.numel() // channels
        elif activation.dim() == 3 and activation.shape[0] == count:
            # a batched product runs every expert over every token, with zeros where the router did not send it
            values = activation.detach().float()
            entry.add(
                slice(first, first + count), values.square().sum(dim=1).double(), values.sum(dim=1, dtype=torch.float64)
            )
            entry.counts[first : first + count] += (values != 0).any(dim=-1).sum(dim=1)

    def multiplying_groups(self, place: WeightPlace, activation: torch.Tensor, ends: Sequence[int]) -> None:
        """Add up the squares of each matrix's rows."""
        entry = self._entry(place)
        if entry is None:
            return
        start = 0
        for matrix, end in enumerate(ends, place.first):
            values = activation[start:end].detach().float()
            entry.add(matrix, values.square().sum(dim=0).double(), values.sum(dim=0, dtype=torch.float64))
            entry.counts[matrix] += end - start
            start = end

    def _entry(self, place: WeightPlace) -> Gathered | None:
        """What is gathered of a parameter; None where another of its products sums along its other axis."""
        entry = self.gathered.get(place.name)
        if entry is None:
            entry = self.gathered[place.name] = _empty(place.parameter, place.axis)
        return entry if entry.axis == place.axis else None

    def _sums(self, activation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of squares and of values over all but the last axis, float64; remembered: q, k and v share an input."""
        version = version_of(activation)
        if self._last_input is None or self._last_input[0] is not activation or self._last_input[1] != version:
            flat = activation.detach().reshape(-1, activation.shape[-1]).float()
            self._last_sums = flat.square().sum(dim=0).double(), flat.sum(dim=0, dtype=torch.float64)
            self._last_input = (activation, version)
        return self._last_sums


def _empty(parameter: torch.Tensor, axis: int) -> Gathered:
    matrices = parameter.shape[0] if parameter.dim() == 3 else 1
    device = parameter.device
    shape = (matrices, parameter.shape[axis])
    return Gathered(
        axis=axis,
        sums=torch.zeros(shape, dtype=torch.float64, device=device),
        plain=torch.zeros(shape, dtype=torch.float64, device=device),
        counts=torch.zeros(matrices, dtype=torch.int64, device=device),
    )

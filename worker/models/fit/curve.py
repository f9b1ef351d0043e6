"""Draw the curve of a model: see :mod:`api_client.contract.size_curve`."""

from __future__ import annotations

from pathlib import Path

from api_client.contract.fit import FitType
from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import TARGETS
from api_client.contract.size_curve import CurvePoint, FitPoint, SizeCurve
from worker.models.fit.allocate import curve
from worker.models.fit.prices import Prices
from worker.models.fit.pricing import price_tensors
from worker.models.fit.solve import FitProblem
from worker.models.fit.space import STOCK_TYPES, FitLimit, FitSpace, space_of
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.sums import mean_squares
from worker.models.sensitivity.gguf_form import read_sensitivity
from worker.setting import ON_THIS_MACHINE, WorkSetting

_LINE = FitType("fit:kld:1")
"""Stands for any fit: what is asked of it are its prices, not its bound."""


def size_curve(
    source: Path, sensitivity: Path, allowed: tuple[str, ...], context: int, *, setting: WorkSetting = ON_THIS_MACHINE
) -> SizeCurve:
    """Price a kept file's tensors and draw its curve.

    Args:
        source: Unquantized GGUF file.
        sensitivity: Of the same model.
        allowed: ggml types that a fit may choose from.
        context: Tokens for which a target's memory must suffice.
        setting: As for :func:`~worker.models.fit.pricing.price_tensors`.

    Raises:
        PackagingError: ``gguf_invalid``, ``sensitivity_invalid``.
        StopRequested: as asked.
    """
    kept = read_sensitivity(sensitivity)
    matrix = mean_squares(kept.matrix(), sensitivity.name)
    space = space_of(source, matrix, allowed)
    used = {
        tensor_type for kind in STOCK_TYPES for tensor_type in space.types_of(kind).values() if tensor_type.is_quantized
    }
    prices = price_tensors(source, kept, sorted(used | {GGMLType[name] for name in allowed}), matrix, setting=setting)
    return priced_curve(space, prices, context)


def priced_curve(space: FitSpace, prices: Prices, context: int) -> SizeCurve:
    """The curve by prices that are there.

    Args:
        space: The model.
        prices: In the allowed types at least; a stock type that has a tensor without a price is left out.
        context: Tokens for which a target's memory must suffice.
    """
    problem = FitProblem(space, prices, _LINE, FitLimit(kld=1.0))
    bought = {tensor.name for tensor in problem.market.prices.tensors}
    others = space.size_of(space.types_of(QuantType.F16) | problem.settled, without=bought)
    base_kld = problem.kld_of(problem.settled)
    mixtures = {kind: space.types_of(kind) for kind in STOCK_TYPES}
    return SizeCurve(
        stock=tuple(
            CurvePoint(
                name=kind.value,
                size_bytes=(size := space.size_of(types)),
                kld=problem.kld_of(types),
                fit_kld=_fit_at(problem, size),
            )
            for kind, types in mixtures.items()
            if _is_priced(prices, types)
        ),
        fit=tuple(
            FitPoint(size_bytes=others + allocation.size_bytes, kld=base_kld + allocation.kld)
            for allocation in curve(problem.market)
        ),
        targets={
            name: max(0, memory - space.shape.cache_bytes(context) - space.shape.buffer_bytes())
            for name, (memory, _) in TARGETS.items()
            if memory is not None and space.shape is not None
        },
    )


def _is_priced(prices: Prices, types: dict[str, GGMLType]) -> bool:
    return all(types[tensor.name].name in tensor.kld_of for tensor in prices.tensors)


def _fit_at(problem: FitProblem, size_bytes: int) -> float | None:
    """Predicted KLD of the fit within so many bytes; None where there is none."""
    smaller = FitProblem(problem.space, problem.prices, problem.fit, FitLimit(size_bytes))
    types = smaller.allocate(smaller.measurable)
    return None if types is None else smaller.kld_of(smaller.completed(types))

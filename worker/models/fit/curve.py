"""Size against predicted KLD for one model: stock types as points, fits as a line, places to run as limits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from api_client.contract.fit import FitType
from api_client.contract.recommend import TARGETS
from worker.models.fit.allocate import curve
from worker.models.fit.prices import Prices
from worker.models.fit.pricing import price_tensors
from worker.models.fit.solve import FitProblem
from worker.models.fit.space import STOCK_TYPES, FitLimit, space_of
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.sums import mean_squares
from worker.models.sensitivity.gguf_form import read_sensitivity
from worker.setting import ON_THIS_MACHINE, WorkSetting

_LINE = FitType("fit:kld:1")
"""Stands for any fit: what is asked of it are its prices, not its bound."""


class CurvePoint(NamedTuple):
    """A file: its bytes and its predicted mean KLD in nats; ``fit_kld`` is that of the fit of the same bytes."""

    name: str
    size_bytes: int
    kld: float
    fit_kld: float | None = None


class SizeCurve(NamedTuple):
    """The curve of a model.

    Attributes:
        stock: Quant types whose tensors all have prices.
        line: Fits, the smallest first.
        targets: Bytes that places to run leave for the file; those of the machine left out.
    """

    stock: tuple[CurvePoint, ...]
    line: tuple[CurvePoint, ...]
    targets: dict[str, int]


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
    found = read_sensitivity(sensitivity)
    matrix = mean_squares(found.matrix(), sensitivity.name)
    space = space_of(source, matrix, allowed)
    mixtures = {kind: space.types_of(kind) for kind in STOCK_TYPES}
    used = {each for types in mixtures.values() for each in types.values() if each.is_quantized}
    prices = price_tensors(source, found, sorted(used | {GGMLType[name] for name in allowed}), matrix, setting=setting)
    problem = FitProblem(space, prices, _LINE, FitLimit(kld=1.0))
    others = space.size_of(problem.settled | _as_f16(prices), without={t.name for t in prices.tensors})
    line = curve(problem.market)
    base_kld = problem.kld_of(problem.settled)
    return SizeCurve(
        tuple(
            CurvePoint(kind.value, size := space.size_of(types), problem.kld_of(types), _fit_at(problem, size))
            for kind, types in mixtures.items()
        ),
        tuple(CurvePoint("fit", others + each.size_bytes, base_kld + each.kld) for each in line),
        {
            name: memory - space.shape.cache_bytes(context) - space.shape.buffer_bytes()
            for name, (memory, _) in TARGETS.items()
            if memory is not None and space.shape is not None
        },
    )


def _as_f16(prices: Prices) -> dict[str, GGMLType]:
    return {tensor.name: GGMLType.F16 for tensor in prices.tensors}


def _fit_at(problem: FitProblem, size_bytes: int) -> float | None:
    """Predicted KLD of the fit within so many bytes; None where there is none."""
    smaller = FitProblem(problem.space, problem.prices, problem.fit, FitLimit(size_bytes))
    types = smaller.allocate(smaller.measurable)
    return None if types is None else smaller.kld_of(smaller.completed(types))

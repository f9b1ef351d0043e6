"""Decide a fit: allocate, then let measurement choose, as far as the model can be run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.models.fit.prices import Prices
from worker.models.fit.select import FitSubject, Measured, correction, measure, scaled, select
from worker.models.fit.solve import FITTED, FitMixture, FitProblem
from worker.models.gguf.types import GGMLType
from worker.setting import ON_THIS_MACHINE, WorkSetting

_ROUNDS = 2
"""How often a fit to a KLD is allocated again by what was measured."""


@dataclass(frozen=True)
class FitDecision:
    """What a fit has come to.

    Attributes:
        mixture: The mixture to make.
        measured: Candidates that were measured, best first; empty where none was.
    """

    mixture: FitMixture
    measured: tuple[Measured, ...] = ()

    @property
    def chosen(self) -> Measured | None:
        """The figures of the mixture."""
        types = {name: kind.name for name, kind in self.mixture.types.items()}
        return next((candidate for candidate in self.measured if candidate.types.items() <= types.items()), None)


def predicted_best(problem: FitProblem) -> FitDecision:
    """The decision by prediction alone.

    Raises:
        PackagingError: ``fit_impossible``.
    """
    return FitDecision(problem.best())


def decide(problem: FitProblem, subject: FitSubject, *, setting: WorkSetting = ON_THIS_MACHINE) -> FitDecision:
    """The decision by measurement.

    Args:
        problem: The fit.
        subject: What is measured with.
        setting: Is told tokens, and asked between the steps.

    Raises:
        PackagingError: ``fit_impossible``, and as :func:`worker.models.fit.select.select`.
        StopRequested: as asked.
    """
    if problem.limit.kld is not None:
        return _to_kld(problem, problem.limit.kld, subject, setting)
    fitted, stock = problem.allocated(), problem.stock()
    measurable = problem.measurable
    beside = stock.types if stock is not None else fitted.types
    selection = select(measurable, _types(measurable, beside), problem.allocate, subject, setting=setting)
    if stock is not None and selection.chosen.types == _types(measurable, stock.types):
        return FitDecision(stock, selection.measured)
    return FitDecision(problem.mixture(problem.completed(selection.chosen.types)), selection.measured)


def _to_kld(problem: FitProblem, limit: float, subject: FitSubject, setting: WorkSetting) -> FitDecision:
    """The smallest mixture that was measured to keep to the limit; where none was, the closest one."""
    prices, measured, mixtures = problem.measurable, list[Measured](), list[FitMixture]()
    corrected = prices
    for _ in range(1 + _ROUNDS):
        types = problem.allocate(corrected)
        if types is None or any(candidate.types == types for candidate in measured):
            break
        measured += measure(prices, {FITTED: types}, subject, setting=setting)
        mixtures.append(problem.mixture(problem.completed(types)))
        corrected = scaled(prices, correction(prices, measured))
    if not measured:
        return predicted_best(problem)
    within = [place for place, candidate in enumerate(measured) if candidate.kld <= limit]
    best = (
        min(within, key=lambda place: mixtures[place].size_bytes)
        if within
        else min(range(len(measured)), key=lambda place: measured[place].kld)
    )
    order = [measured[best], *(candidate for place, candidate in enumerate(measured) if place != best)]
    return FitDecision(mixtures[best], tuple(order))


def _types(prices: Prices, types: Mapping[str, GGMLType]) -> dict[str, str]:
    """Of the tensors that have prices."""
    return {tensor.name: types[tensor.name].name for tensor in prices.tensors}

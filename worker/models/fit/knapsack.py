"""Choose one option of every group so that weights keep to a limit and costs are least: exact, and always the same.

The multiple-choice knapsack problem. A Lagrangian multiplier is found on the lower convex hulls of the groups; with it
every option has a reduced cost of zero or more, and the optimum lies above the Lagrangian bound by no more than any
choice at hand does. Options whose reduced cost is above that gap are out; over the few that are left the sums are
enumerated, group after group, without those that a lighter one undercuts (Sinha and Zoltners 1979; Pisinger 1995).
Where the sums grow beyond :data:`MOST_SUMS` only the best are kept, and the result says that it may not be the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_SUMS = 30_000
_FIRST_SUMS = 2_000
_TINY = 1e-12


class Option(NamedTuple):
    """One choice of a group."""

    weight: float
    cost: float


@dataclass(frozen=True)
class KnapsackAnswer:
    """What was chosen.

    Attributes:
        picks: Index of the option of each group.
        weight: Sum of weights.
        cost: Sum of costs.
        bound: No choice costs less than this.
        is_optimal: Whether no choice costs less than this one.
    """

    picks: tuple[int, ...]
    weight: float
    cost: float
    bound: float
    is_optimal: bool


def choose(groups: Sequence[Sequence[Option]], limit: float) -> KnapsackAnswer | None:
    """Choose one option of each group.

    Args:
        groups: Each with at least one option; weights and costs are finite and not negative.
        limit: Largest sum of weights.

    Returns:
        The choice; of equally good ones the lighter. None where even the lightest is above the limit.
    """
    ranked = [_ranked(group) for group in groups]
    steps = sorted(
        (step for number, group in enumerate(ranked) for step in _steps(number, group)),
        key=lambda step: (-step.gain / step.weight, step.group, step.to),
    )
    picks = [group[0].place for group in ranked]
    weight = sum(group[0].weight for group in ranked)
    if weight > limit:
        return None
    multiplier = 0.0
    stopped: set[int] = set()
    for step in steps:
        if step.group in stopped:
            continue
        if weight + step.weight > limit:
            multiplier = multiplier or step.gain / step.weight
            stopped.add(step.group)
            continue
        weight += step.weight
        picks[step.group] = step.to
    first = _result(groups, picks, -np.inf)
    if not multiplier:
        return KnapsackAnswer(first.picks, first.weight, first.cost, first.cost, is_optimal=True)
    picked = _enumerate(groups, limit, multiplier, first, _FIRST_SUMS)
    return picked if picked.is_optimal else _enumerate(groups, limit, multiplier, picked, MOST_SUMS)


class _Ranked(NamedTuple):
    weight: float
    cost: float
    place: int


class _Step(NamedTuple):
    """From one option of a hull to the next heavier."""

    group: int
    weight: float
    gain: float
    to: int


def _ranked(group: Sequence[Option]) -> list[_Ranked]:
    """Options that no lighter one undercuts, the lightest first."""
    ranked: list[_Ranked] = []
    for option in sorted(_Ranked(weight, cost, index) for index, (weight, cost) in enumerate(group)):
        if not ranked or option.cost < ranked[-1].cost:
            ranked.append(option)
    return ranked


def _steps(number: int, ranked: Sequence[_Ranked]) -> list[_Step]:
    """The lower convex hull's edges, the steepest first."""
    hull: list[_Ranked] = []
    for option in ranked:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], option):
            hull.pop()
        hull.append(option)
    return [
        _Step(number, after.weight - before.weight, before.cost - after.cost, after.place)
        for before, after in pairwise(hull)
    ]


def _slope(before: _Ranked, after: _Ranked) -> float:
    return (before.cost - after.cost) / (after.weight - before.weight)


def _result(
    groups: Sequence[Sequence[Option]], picks: Sequence[int], bound: float, *, optimal: bool = False
) -> KnapsackAnswer:
    chosen = [group[pick] for group, pick in zip(groups, picks, strict=True)]
    return KnapsackAnswer(
        tuple(picks),
        sum(option.weight for option in chosen),
        sum(option.cost for option in chosen),
        bound,
        optimal,
    )


@dataclass
class _Sums:
    """Sums over the groups so far, and how each was reached.

    Costs are summed beside the reduced ones: worked out from those, equal costs would differ by rounding.
    """

    weight: NDArray[np.float64]
    cost: NDArray[np.float64]
    reduced: NDArray[np.float64]
    came_from: list[tuple[NDArray[np.int32], NDArray[np.int32]]]


def _enumerate(
    groups: Sequence[Sequence[Option]], limit: float, multiplier: float, best: KnapsackAnswer, most: int
) -> KnapsackAnswer:
    """The best choice whose reduced costs add up to no more than the gap of the best one at hand."""
    weights = [np.array([option.weight for option in group]) for group in groups]
    costs = [np.array([option.cost for option in group]) for group in groups]
    reduced = [cost + multiplier * weight for cost, weight in zip(costs, weights, strict=True)]
    least = [float(values.min()) for values in reduced]
    bound = sum(least) - multiplier * limit
    gap = (best.cost - bound) * (1 + _TINY) + _TINY * abs(best.cost)
    kept = [np.flatnonzero(values - low <= gap) for values, low in zip(reduced, least, strict=True)]
    order = sorted(range(len(groups)), key=lambda number: (len(kept[number]), number))
    lightest = [float(weights[number][kept[number]].min()) for number in order]
    after = np.cumsum([0.0, *lightest[::-1]])[::-1][1:]
    sums, whole = _Sums(np.zeros(1), np.zeros(1), np.zeros(1), []), True
    for place, number in enumerate(order):
        options = kept[number]
        _add(sums, weights[number], costs[number], reduced[number] - least[number], options)
        _keep(sums, np.flatnonzero((sums.reduced <= gap) & (sums.weight + after[place] <= limit)))
        _keep(sums, _front(sums.weight, sums.cost))
        if len(sums.weight) > most:
            _keep(sums, np.sort(np.argsort(sums.reduced, kind="stable")[:most]))
            whole = False
        if not len(sums.weight):  # the best at hand, up to rounding
            return KnapsackAnswer(best.picks, best.weight, best.cost, bound, is_optimal=whole)
    winner = int(np.lexsort((sums.weight, sums.cost))[0])
    picks = [0] * len(groups)
    for number, (parents, taken) in zip(order[::-1], sums.came_from[::-1], strict=True):
        picks[number] = int(taken[winner])
        winner = int(parents[winner])
    result = _result(groups, picks, bound, optimal=whole)
    better = (result.cost, result.weight) < (best.cost, best.weight)
    return result if better else KnapsackAnswer(best.picks, best.weight, best.cost, bound, is_optimal=whole)


def _add(
    sums: _Sums,
    weights: NDArray[np.float64],
    costs: NDArray[np.float64],
    reduced: NDArray[np.float64],
    options: NDArray[np.int64],
) -> None:
    """Add every one of the options of a group to every sum."""
    count = len(sums.weight)
    sums.weight = (weights[options, None] + sums.weight).reshape(-1)
    sums.cost = (costs[options, None] + sums.cost).reshape(-1)
    sums.reduced = (reduced[options, None] + sums.reduced).reshape(-1)
    parents = np.tile(np.arange(count, dtype=np.int32), len(options))
    sums.came_from.append((parents, np.repeat(options.astype(np.int32), count)))


def _front(weight: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Those that none of the same weight or less undercuts; of equals the first."""
    order = np.lexsort((cost, weight))
    before = np.minimum.accumulate(cost[order])
    kept = np.ones(len(order), bool)
    kept[1:] = cost[order][1:] < before[:-1]
    return order[kept]


def _keep(sums: _Sums, which: NDArray[np.int64]) -> None:
    sums.weight, sums.cost, sums.reduced = sums.weight[which], sums.cost[which], sums.reduced[which]
    parents, taken = sums.came_from[-1]
    sums.came_from[-1] = (parents[which], taken[which])

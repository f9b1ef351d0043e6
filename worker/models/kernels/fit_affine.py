"""The search for the scale and the minimum of a sub-block (Q2_K, Q4_K, Q5_K, Q4_1, Q5_1).

It follows ggml's routines operation by operation: float32 sums are taken in element order, and a candidate
replaces the best one only if it is strictly better. The search keeps no levels. It keeps the numbers that the best
levels came from, and the caller computes the levels once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from worker.models.kernels.fit_scale import Elements
from worker.models.kernels.lanes import Float, Index, Int, Mask, select
from worker.models.kernels.machine import Machine
from worker.models.kernels.rounding import nearest_level


class SearchRange(NamedTuple):
    """How the scale and the minimum of a sub-block are searched."""

    top: int
    """Largest level; the smallest is 0."""
    first: float
    step: float
    steps: int

    def numerators(self) -> list[np.float32]:
        """What is divided by the range of the values to give the inverse scales that are tried."""
        first, step = np.float32(self.first), np.float32(self.step)
        return [first + step * np.float32(i) + np.float32(self.top) for i in range(self.steps + 1)]


class Affine(NamedTuple):
    """Scale and minimum of a sub-block, with what :func:`affine_level` computes its levels from once more."""

    scale: Float
    minimum: Float
    """What is subtracted: the negated lowest value."""
    inverse: Float
    low: Float
    improved: Int
    """1 if an attempt was better than the first guess."""


Rounding = Callable[[Float, int], Float]
Distance = Callable[[Float], Float]


def round_then_limit(quotient: Float, top: int) -> Float:
    """Level of a quotient: rounded, then limited to ``0 .. top``."""
    return nearest_level(quotient, 0, top)


def limit_then_round(quotient: Float, top: int) -> Float:
    """Level of a quotient: limited to ``0 .. top`` with NaN as 0, then rounded."""
    quotient = select(quotient > 0, quotient, 0.0)
    return (select(quotient < top, quotient, float(top)) + 12582912.0) - 12582912.0


def squared(difference: Float) -> Float:
    """Squared error."""
    return difference * difference


def fit_affine(m: Machine, elements: Elements, search: SearchRange, distance: Distance) -> Affine:
    """Fit ``x = scale * level - minimum``: ``make_qkx2_quants``."""
    return _fit_affine(m, elements, search, _Style(distance, round_then_limit))


def fit_affine_weighted(m: Machine, elements: Elements, search: SearchRange) -> Affine:
    """Fit ``x = scale * level - minimum``: ``make_qkx3_quants``."""
    return _fit_affine(m, elements, search, _Style(squared, limit_then_round))


def affine_level(fitted: Affine, x: Float, top: int, rounding: Rounding) -> Float:
    """The level that a fit gave to an element; ``rounding`` is that of its attempts."""
    quotient = fitted.inverse * (x - fitted.low)
    first = round_then_limit(quotient, top)
    return first if rounding is round_then_limit else select(fitted.improved > 0, rounding(quotient, top), first)


class _Style(NamedTuple):
    distance: Distance
    rounding: Rounding


class _Moments(NamedTuple):
    low: Float
    high: Float
    sum_w: Float
    sum_x: Float


class _Best(NamedTuple):
    """The best attempt so far."""

    error: Float
    scale: Float
    low: Float
    inverse: Float
    origin: Float
    """``low`` as it was when ``inverse`` was tried."""
    improved: Int


def _moments(m: Machine, elements: Elements) -> _Moments:
    x, w, length = elements

    def add(i: Index, low: Float, high: Float, sum_w: Float, sum_x: Float) -> _Moments:
        value, weight = x[i + 1], w[i + 1]
        low, high = select(value < low, value, low), select(value > high, value, high)
        return _Moments(low, high, sum_w + weight, sum_x + weight * value)

    moments = _Moments(*m.fold(length - 1, add, x[0], x[0], w[0], w[0] * x[0]))
    return moments._replace(low=select(moments.low > 0, m.f32(0), moments.low))


def _fit_affine(m: Machine, elements: Elements, search: SearchRange, style: _Style) -> Affine:
    x, w, n = elements
    moments = _moments(m, elements)
    low, high = moments.low, moments.high
    inverse = search.top / (high - low)
    scale = 1.0 / inverse

    def first_error(i: Index, error: Float) -> Float:
        level = round_then_limit(inverse * (x[i] - low), search.top)
        return error + w[i] * style.distance(scale * level + low - x[i])

    error = m.fold(n, first_error, m.f32(0), unroll=4)
    numerators, levels = m.constants(search.numerators()), m.floats(n)

    def attempt(step: Index, *state: Any) -> _Best:
        best = _Best(*state)
        tried = numerators[step] / (high - best.low)

        def add(i: Index, sum_l: Float, sum_l2: Float, sum_xl: Float) -> tuple[Float, ...]:
            level = style.rounding(tried * (x[i] - best.low), search.top)
            levels[i] = level
            weighted = w[i] * level
            return sum_l + weighted, sum_l2 + weighted * level, sum_xl + weighted * x[i]

        sums = m.fold(n, add, m.f32(0), m.f32(0), m.f32(0), unroll=4)
        solvable, scale, low = _solve(m, moments, *sums)
        error = m.fold(n, lambda i, e: e + w[i] * style.distance(scale * levels[i] + low - x[i]), m.f32(0), unroll=4)
        better = solvable & (error < best.error)
        return _Best(
            select(better, error, best.error),
            select(better, scale, best.scale),
            select(better, low, best.low),
            select(better, tried, best.inverse),
            select(better, best.low, best.origin),
            select(better, m.i32(1), best.improved),
        )

    best = _Best(*m.fold(search.steps + 1, attempt, error, scale, low, inverse, low, m.i32(0)))
    flat = high <= low
    return Affine(
        scale=select(flat, m.f32(0), best.scale),
        minimum=-select(flat, low, best.low),
        inverse=select(flat, m.f32(0), best.inverse),
        low=best.origin,
        improved=best.improved,
    )


def _solve(m: Machine, moments: _Moments, sum_l: Float, sum_l2: Float, sum_xl: Float) -> tuple[Mask, Float, Float]:
    """Scale and lowest value with the least squared error for given levels; the lowest value is not above 0."""
    sum_w, sum_x = moments.sum_w, moments.sum_x
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    positive = low > 0
    return determinant > 0, select(positive, sum_xl / sum_l2, scale), select(positive, m.f32(0), low)

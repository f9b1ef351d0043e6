"""Searches for a scale alone: around zero (Q3_K, Q6_K, Q4_0, Q5_0), and for scales that are themselves quantized.

Each follows one of ggml's routines operation by operation: float32 sums are taken in element order, and a candidate
replaces the best one only if it is strictly better.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np

from worker.models.kernels.lanes import Array, Float, Index, Int, Mask, select
from worker.models.kernels.machine import Machine
from worker.models.kernels.rounding import nearest_int, nearest_level

SMALLEST = 1e-15
"""``GROUP_MAX_EPS`` of ggml: a sub-block whose largest magnitude is below this becomes zero."""


class Elements(NamedTuple):
    """What is fitted: some numbers and the weights of their errors."""

    x: Array[Float]
    w: Array[Float]
    length: int


class Symmetric(NamedTuple):
    """Scale of a sub-block around zero, and how its levels are had again (:func:`symmetric_level`)."""

    scale: Float
    inverse: Float
    base: Float
    """Level of zero; 0 in a sub-block that became zero."""


def fit_symmetric(m: Machine, elements: Elements, top: int) -> Symmetric:
    """Fit ``x = scale * (level - top)`` with levels ``0 .. 2 * top - 1``: ``make_qx_quants`` with given weights."""
    x, w, length = elements
    extreme = largest_magnitude(m, x, length)

    def sums(inverse: Float) -> tuple[Float, Float]:
        def add(i: Index, sum_lx: Float, sum_l2: Float) -> tuple[Float, ...]:
            level = nearest_level(inverse * x[i], -top, top - 1)
            return sum_lx + w[i] * x[i] * level, sum_l2 + w[i] * level * level

        sum_lx, sum_l2 = m.fold(length, add, m.f32(0), m.f32(0), unroll=4)
        return sum_lx, sum_l2

    inverse = float(-top) / extreme
    sum_lx, sum_l2 = sums(inverse)
    scale = select(sum_l2 != 0, sum_lx / sum_l2, 0.0)
    steps = [i for i in range(-9, 10) if i]
    numerators = m.constants([-(np.float32(top) + np.float32(0.1) * np.float32(i)) for i in steps])

    def attempt(step: Index, best: Float, scale: Float, inverse: Float) -> tuple[Float, ...]:
        tried = numerators[step] / extreme
        sum_lx, sum_l2 = sums(tried)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        new = sum_lx / sum_l2
        return select(better, new * sum_lx, best), select(better, new, scale), select(better, tried, inverse)

    _, scale, inverse = m.fold(len(steps), attempt, scale * sum_lx, scale, inverse)
    zero = abs(extreme) < SMALLEST
    return Symmetric(
        scale=select(zero, m.f32(0), scale),
        inverse=select(zero, m.f32(0), inverse),
        base=select(zero, m.f32(0), m.f32(top)),
    )


def symmetric_level(fitted: Symmetric, x: Float, top: int) -> Float:
    """The level that a fit gave to an element."""
    return nearest_level(fitted.inverse * x, -top, top - 1) + fitted.base


def largest_magnitude(m: Machine, x: Array[Float], length: int) -> Float:
    """The first of the elements with the largest magnitude, with its sign."""

    def larger(i: Index, magnitude: Float, value: Float) -> tuple[Float, ...]:
        this = abs(x[i])
        better = this > magnitude
        return select(better, this, magnitude), select(better, x[i], value)

    _, value = m.fold(length, larger, m.f32(0), m.f32(0))
    found: Float = value
    return found


class _Sums(NamedTuple):
    """Sums that decide the scale for given levels, and whether the last sweep changed a level."""

    lx: Float
    l2: Float
    changed: Int

    def scale(self, m: Machine, zero: Mask) -> Float:
        """Scale with the least error; 0 for a sub-block that became zero."""
        return select(zero | ~(self.l2 > 0), m.f32(0), self.lx / self.l2)


def fit_refined(m: Machine, parts: Sequence[tuple[Array[Float], Array[Float]]], length: int, top: int) -> list[Float]:
    """Fit ``x = scale * (level - top)`` by improving one level after the other: ``make_q3_quants``.

    A step waits for the one before it, so several sub-blocks (``x`` and ``levels``) go side by side. ``levels`` receive
    ``0 .. 2 * top - 1``, or all 0 for a sub-block that became zero. Returns the scales.
    """
    extremes = [largest_magnitude(m, x, length) for x, _ in parts]
    zeros = [abs(extreme) < SMALLEST for extreme in extremes]
    inverses = [float(-top) / extreme for extreme in extremes]

    def first(i: Index, lx: Float, l2: Float, number: int) -> tuple[Float, Float]:
        x, levels = parts[number][0][i], parts[number][1]
        level = nearest_level(inverses[number] * x, -top, top - 1)
        levels[i] = level
        w = x * x
        return lx + w * x * level, l2 + w * level * level

    def improve(i: Index, *state: Any) -> tuple[Any, ...]:
        results: list[Any] = []
        for elements, sums in zip(parts, _triples(state), strict=True):
            results += _improved_symmetric(elements, i, top, sums)
        return tuple(results)

    def sweep(_: Index, *state: Any) -> Any:
        unchanged = [value for lx, l2, _ in _triples(state) for value in (lx, l2, m.i32(0))]
        return m.fold(length, improve, *unchanged)

    def changed(*state: Any) -> Mask:
        masks = [(sums.changed > 0) & ~zero for sums, zero in zip(_triples(state), zeros, strict=True)]
        return reduce(operator.or_, masks)

    start: list[Any] = []
    for number in range(len(parts)):
        start += [*m.fold(length, partial(first, number=number), m.f32(0), m.f32(0)), m.i32(0)]
    final = m.fold(5, sweep, *start, again=changed)

    def shift(i: Index) -> None:
        for (_, levels), zero in zip(parts, zeros, strict=True):
            levels[i] = select(zero, m.f32(0), levels[i] + float(top))

    m.fold(length, shift)
    return [sums.scale(m, zero) for sums, zero in zip(_triples(final), zeros, strict=True)]


def _triples(state: Sequence[Any]) -> list[_Sums]:
    return [_Sums(*state[start : start + 3]) for start in range(0, len(state), 3)]


def _improved_symmetric(elements: tuple[Array[Float], Array[Float]], i: Index, top: int, sums: _Sums) -> _Sums:
    """Change the level of one element where that makes the fit better."""
    lx, l2, changed = sums
    x, levels = elements[0][i], elements[1]
    level, w = levels[i], x * x
    without_lx, without_l2 = lx - w * x * level, l2 - w * level * level
    new = nearest_level(x * without_l2 / without_lx, -top, top - 1)
    with_lx, with_l2 = without_lx + w * x * new, without_l2 + w * new * new
    better = (without_lx > 0) & (new != level) & (with_l2 > 0) & (with_lx * with_lx * l2 > lx * lx * with_l2)
    levels[i] = select(better, new, level)
    return _Sums(select(better, with_lx, lx), select(better, with_l2, l2), select(better, lx.machine.i32(1), changed))


def fit_positive(m: Machine, elements: Elements, top: int, levels: Array[Int]) -> Float:
    """Fit ``x = scale * level`` for scales themselves: ``make_qp_quants``.

    ``levels`` receives integers in one byte: ggml limits them to ``top`` from above only, so that a negative ``x``
    wraps around. Returns the scale.
    """
    x, w, length = elements
    largest = m.fold(length, lambda i, high: select(high > x[i], high, x[i]), m.f32(0))
    zero = largest < SMALLEST
    inverse = _best_inverse(m, elements, top, largest)

    def first(i: Index, lx: Float, l2: Float) -> tuple[Float, ...]:
        level = _below(nearest_int(inverse * x[i]), top)
        levels[i] = level & 255
        value = level.to_float()
        return lx + w[i] * x[i] * value, l2 + w[i] * value * value

    def improve(i: Index, lx: Float, l2: Float, changed: Int) -> _Sums:
        level = levels[i].to_float()
        without_lx, without_l2 = lx - w[i] * x[i] * level, l2 - w[i] * level * level
        new = _below(nearest_int(x[i] * without_l2 / without_lx), top)
        value = new.to_float()
        with_lx, with_l2 = without_lx + w[i] * x[i] * value, without_l2 + w[i] * value * value
        better = (without_lx > 0) & (without_l2 > 0) & (value != level) & (with_lx * with_lx * l2 > lx * lx * with_l2)
        levels[i] = select(better, new & 255, levels[i])
        return _Sums(select(better, with_lx, lx), select(better, with_l2, l2), select(better, m.i32(1), changed))

    def clear(i: Index) -> None:
        levels[i] = select(zero, m.i32(0), levels[i])

    lx, l2 = m.fold(length, first, m.f32(0), m.f32(0))
    sums = _Sums(
        *m.fold(
            5,
            lambda _, *s: m.fold(length, improve, *s[:2], m.i32(0)),
            *(lx, l2, m.i32(0)),
            again=lambda *s: (s[2] > 0) & ~zero,
        )
    )
    m.fold(length, clear)
    return sums.scale(m, zero)


def _best_inverse(m: Machine, elements: Elements, top: int, largest: Float) -> Float:
    """The inverse scale with the least squared error, out of nine around the one that fits the largest element."""
    x, w, length = elements
    first = float(top) / largest

    def first_error(i: Index, error: Float) -> Float:
        difference = x[i] - (1.0 / first) * (nearest_int(first * x[i]) & 255).to_float()
        return error + w[i] * difference * difference

    def attempt(step: Index, best: Float, inverse: Float) -> tuple[Float, ...]:
        tried = numerators[step] / largest
        scale = 1.0 / tried

        def add(i: Index, error: Float) -> Float:
            difference = x[i] - scale * _below(nearest_int(tried * x[i]), top).to_float()
            return error + w[i] * difference * difference

        error = m.fold(length, add, m.f32(0))
        return select(error < best, error, best), select(error < best, tried, inverse)

    numerators = m.constants([np.float32(0.1) * np.float32(i) + np.float32(top) for i in range(-4, 5) if i])
    _, inverse = m.fold(8, attempt, m.fold(length, first_error, m.f32(0)), first)
    best: Float = inverse
    return best


def _below(level: Int, top: int) -> Int:
    return select(level < top, level, top)

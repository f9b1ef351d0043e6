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

from worker.models.kernels.lanes import Array, Float, Index, Int, Mask, Value, select
from worker.models.kernels.machine import Machine
from worker.models.kernels.rounding import nearest_int, nearest_level

SMALLEST = 1e-15
"""``GROUP_MAX_EPS`` of ggml: a sub-block whose largest magnitude is below this becomes zero."""
SWEEPS = 5
"""How often ggml goes over all levels of a sub-block, unless one sweep changes none."""


class Elements(NamedTuple):
    """What is fitted: some numbers and the weights of their errors."""

    x: Array[Float]
    w: Array[Float]
    length: int


class Symmetric(NamedTuple):
    """Scale of a sub-block around zero, with what :func:`symmetric_level` computes its levels from once more."""

    scale: Float
    inverse: Float
    base: Float
    """Level of zero; 0 in a sub-block that became zero."""


class _Projection(NamedTuple):
    """Weighted sums over elements and their levels; ``lx / l2`` is the scale with the least error."""

    lx: Float
    """Sum of ``weight * x * level``."""
    l2: Float
    """Sum of ``weight * level * level``."""


class _SymmetricTrial(NamedTuple):
    """Loop state of :func:`fit_symmetric`: the best of the inverse scales tried so far."""

    gain: Float
    """By how much it lowers the error: ``lx * lx / l2``."""
    scale: Float
    inverse: Float


class _PositiveTrial(NamedTuple):
    """Loop state of :func:`_best_inverse`: the best of the inverse scales tried so far."""

    error: Float
    inverse: Float


class _Extreme(NamedTuple):
    """Loop state of :func:`largest_magnitude`: the element with the largest magnitude so far."""

    magnitude: Float
    value: Float


def fit_symmetric(m: Machine, elements: Elements, top: int) -> Symmetric:
    """Fit ``x = scale * (level - top)`` with levels ``0 .. 2 * top - 1``: ``make_qx_quants`` with given weights."""
    x, w, length = elements
    extreme = largest_magnitude(m, x, length)

    def project(inverse: Float) -> _Projection:
        def add(i: Index, lx: Float, l2: Float) -> _Projection:
            level = nearest_level(inverse * x[i], -top, top - 1)
            return _Projection(lx + w[i] * x[i] * level, l2 + w[i] * level * level)

        return _Projection(*m.fold(length, add, m.f32(0), m.f32(0), unroll=4))

    inverse = float(-top) / extreme
    first = project(inverse)
    scale = select(first.l2 != 0, first.lx / first.l2, 0.0)
    steps = [i for i in range(-9, 10) if i]
    numerators = m.constants([-(np.float32(top) + np.float32(0.1) * np.float32(i)) for i in steps])

    def attempt(step: Index, gain: Float, scale: Float, inverse: Float) -> _SymmetricTrial:
        tried = numerators[step] / extreme
        lx, l2 = project(tried)
        better = (l2 > 0) & (lx * lx > gain * l2)
        new = lx / l2
        return _SymmetricTrial(
            gain=select(better, new * lx, gain),
            scale=select(better, new, scale),
            inverse=select(better, tried, inverse),
        )

    best = _SymmetricTrial(*m.fold(len(steps), attempt, *_SymmetricTrial(scale * first.lx, scale, inverse)))
    zero = abs(extreme) < SMALLEST
    return Symmetric(
        scale=select(zero, m.f32(0), best.scale),
        inverse=select(zero, m.f32(0), best.inverse),
        base=select(zero, m.f32(0), m.f32(top)),
    )


def symmetric_level(fitted: Symmetric, x: Float, top: int) -> Float:
    """The level that a fit gave to an element."""
    return nearest_level(fitted.inverse * x, -top, top - 1) + fitted.base


def largest_magnitude(m: Machine, x: Array[Float], length: int) -> Float:
    """The first of the elements with the largest magnitude, with its sign."""

    def larger(i: Index, magnitude: Float, value: Float) -> _Extreme:
        this = abs(x[i])
        better = this > magnitude
        return _Extreme(select(better, this, magnitude), select(better, x[i], value))

    return _Extreme(*m.fold(length, larger, m.f32(0), m.f32(0))).value


class _Sums(NamedTuple):
    """Loop state of a sweep over levels: the sums of :class:`_Projection`, and whether it changed a level."""

    lx: Float
    l2: Float
    changed: Int
    """1 if this sweep has changed a level."""

    @classmethod
    def of(cls, m: Machine, projection: _Projection) -> _Sums:
        """Before a sweep."""
        return cls(*projection, m.i32(0))

    def scale(self, m: Machine, zero: Mask) -> Float:
        """Scale with the least error; 0 for a sub-block that became zero."""
        return select(zero | ~(self.l2 > 0), m.f32(0), self.lx / self.l2)


def fit_refined(m: Machine, parts: Sequence[tuple[Array[Float], Array[Float]]], length: int, top: int) -> list[Float]:
    """Fit ``x = scale * (level - top)`` by improving one level after the other: ``make_q3_quants``.

    A step waits for the one before it, so several sub-blocks (``x`` and ``levels``) go side by side. ``levels`` receive
    ``0 .. 2 * top - 1``, or all 0 for a sub-block that became zero. The loops carry a :class:`_Sums` per sub-block.
    Returns the scales.
    """
    extremes = [largest_magnitude(m, x, length) for x, _ in parts]
    zeros = [abs(extreme) < SMALLEST for extreme in extremes]
    inverses = [float(-top) / extreme for extreme in extremes]

    def first(i: Index, lx: Float, l2: Float, number: int) -> _Projection:
        x, levels = parts[number][0][i], parts[number][1]
        level = nearest_level(inverses[number] * x, -top, top - 1)
        levels[i] = level
        w = x * x
        return _Projection(lx + w * x * level, l2 + w * level * level)

    def improve(i: Index, *state: Value) -> tuple[Value, ...]:
        return _flat([_improved_symmetric(part, i, top, sums) for part, sums in zip(parts, _each(state), strict=True)])

    def sweep(_: Index, *state: Value) -> Any:
        unchanged = [_Sums.of(m, _Projection(sums.lx, sums.l2)) for sums in _each(state)]
        return m.fold(length, improve, *_flat(unchanged))

    def changed(*state: Value) -> Mask:
        masks = [(sums.changed > 0) & ~zero for sums, zero in zip(_each(state), zeros, strict=True)]
        return reduce(operator.or_, masks)

    start: list[_Sums] = []
    for number in range(len(parts)):
        projection = _Projection(*m.fold(length, partial(first, number=number), m.f32(0), m.f32(0)))
        start.append(_Sums.of(m, projection))
    final = m.fold(SWEEPS, sweep, *_flat(start), again=changed)

    def shift(i: Index) -> None:
        for (_, levels), zero in zip(parts, zeros, strict=True):
            levels[i] = select(zero, m.f32(0), levels[i] + float(top))

    m.fold(length, shift)
    return [sums.scale(m, zero) for sums, zero in zip(_each(final), zeros, strict=True)]


def _flat(every: Sequence[_Sums]) -> tuple[Value, ...]:
    """The state of several sub-blocks as the single values that a loop carries."""
    return tuple(value for sums in every for value in sums)


def _each(state: Sequence[Any]) -> list[_Sums]:
    """The state of each sub-block, from the single values that a loop carries."""
    size = len(_Sums._fields)
    return [_Sums(*state[start : start + size]) for start in range(0, len(state), size)]


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
    zero: Mask = largest < SMALLEST
    inverse = _best_inverse(m, elements, top, largest)

    def first(i: Index, lx: Float, l2: Float) -> _Projection:
        level = _below(nearest_int(inverse * x[i]), top)
        levels[i] = level & 255
        value = level.to_float()
        return _Projection(lx + w[i] * x[i] * value, l2 + w[i] * value * value)

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

    def sweep(_: Index, lx: Float, l2: Float, _changed: Int) -> Any:
        return m.fold(length, improve, *_Sums.of(m, _Projection(lx, l2)))

    def goes_on(_lx: Float, _l2: Float, changed: Int) -> Mask:
        return (changed > 0) & ~zero

    start = _Sums.of(m, _Projection(*m.fold(length, first, m.f32(0), m.f32(0))))
    sums = _Sums(*m.fold(SWEEPS, sweep, *start, again=goes_on))
    m.fold(length, clear)
    return sums.scale(m, zero)


def _best_inverse(m: Machine, elements: Elements, top: int, largest: Float) -> Float:
    """The inverse scale with the least squared error, out of nine around the one that fits the largest element."""
    x, w, length = elements
    first = float(top) / largest

    def first_error(i: Index, error: Float) -> Float:
        difference = x[i] - (1.0 / first) * (nearest_int(first * x[i]) & 255).to_float()
        return error + w[i] * difference * difference

    def attempt(step: Index, least: Float, inverse: Float) -> _PositiveTrial:
        tried = numerators[step] / largest
        scale = 1.0 / tried

        def add(i: Index, error: Float) -> Float:
            difference = x[i] - scale * _below(nearest_int(tried * x[i]), top).to_float()
            return error + w[i] * difference * difference

        error = m.fold(length, add, m.f32(0))
        return _PositiveTrial(select(error < least, error, least), select(error < least, tried, inverse))

    numerators = m.constants([np.float32(0.1) * np.float32(i) + np.float32(top) for i in range(-4, 5) if i])
    start = _PositiveTrial(m.fold(length, first_error, m.f32(0)), first)
    return _PositiveTrial(*m.fold(8, attempt, *start)).inverse


def _below(level: Int, top: int) -> Int:
    return select(level < top, level, top)

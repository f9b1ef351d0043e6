"""The search that the IQ2 and IQ3 types share: magnitudes from a grid of 8 (or 4) dimensions, signs apart.

For each of some scales around the natural one, every group of elements is rounded; where that is no point of the
grid, the nearest point (errors weighted) is looked for among those nearest to the rounding. The scale that fits the
best of these is kept, and groups are placed once more with it.

The search over points is where the time goes. An element has as many possible errors as there are levels; they are
computed once per group, and a point is then judged by picking one for each element and adding them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from worker.models.kernels.fit_scale import Elements
from worker.models.kernels.lanes import Array, Float, Index, Int, Mask, Scratch, Table, select
from worker.models.kernels.machine import Block, Machine
from worker.models.kernels.rounding import half_bits, limited, nearest_int, nearest_level


class GridShape(NamedTuple):
    """What tells the types apart while a sub-block is searched."""

    length: int
    """Elements of a sub-block."""
    group: int
    """Elements of a point."""
    n_levels: int
    smallest: float
    """A sub-block whose largest magnitude is below this becomes zero."""
    tries: int
    """How many scales are tried to either side of the natural one."""
    step: float
    even_signs: bool
    """Whether an eighth sign is left out: the number of minus signs in eight elements is made even."""

    @property
    def groups(self) -> int:
        """Points per sub-block."""
        return self.length // self.group

    @property
    def bits(self) -> int:
        """Bits of a level in a packed point."""
        return 2 if self.n_levels == 3 else 3

    def numerators(self) -> list[np.float32]:
        """What is divided by the largest magnitude to give the inverse scales tried."""
        middle, step = np.float32(2 * self.n_levels - 1), np.float32(self.step)
        return [middle + np.float32(i) * step for i in range(-self.tries, self.tries + 1)]


class SubBlock(NamedTuple):
    """Magnitudes of a sub-block, weights of their errors, and the square roots of these."""

    x: Scratch[Float]
    weight: Scratch[Float]
    root: Scratch[Float]
    signs: Scratch[Int]
    """A byte of signs per eight elements."""


class Point(NamedTuple):
    """Where a group of elements was placed."""

    entry: Int
    """``index << 16 | levels``."""
    on_grid: Int
    """1 if the rounding itself is a point."""


def place(m: Machine, table: Table, rounded: list[Float], errors: list[list[Float]]) -> Point:
    """The point for a rounded group: itself if it is one, else the near point with the least error.

    ``errors`` has the error of each element at each level.
    """
    n_levels = float(len(errors[0]))
    code = rounded[-1]
    for level in reversed(rounded[:-1]):
        code = code * n_levels + level
    entry = table[code.truncated()]
    return Point(m.nearest_point(table, entry, errors), select(entry < 0, m.i32(0), 1))


def _levels_of(entry: Int, shape: GridShape) -> list[Int]:
    """Levels of a packed point."""
    mask = (1 << shape.bits) - 1
    return [(entry >> (shape.bits * i)) & mask for i in range(shape.group)]


def _sums(m: Machine, shape: GridShape, part: SubBlock, points: Array[Int]) -> tuple[Float, Float]:
    """Sums of weight * x * quant and weight * quant**2 over a sub-block."""

    def add(group: Index, qx: Float, q2: Float) -> tuple[Float, Float]:
        x, weight = part.x.part(group * shape.group), part.weight.part(group * shape.group)
        for i, level in enumerate(_levels_of(points[group], shape)):
            quant = (level + level + 1).to_float()
            qx, q2 = qx + weight[i] * x[i] * quant, q2 + weight[i] * quant * quant
        return qx, q2

    qx, q2 = m.fold(shape.groups, add, m.f32(0), m.f32(0))
    return qx, q2


class FinishedSubBlock(NamedTuple):
    """A finished sub-block; points are in ``Search.points``."""

    scale: Float
    zero: Mask
    """Whether it was left out: nothing is stored for it but zeros."""


class Search:
    """The search over one sub-block, with its working space."""

    def __init__(self, m: Machine, block: Block, shape: GridShape) -> None:
        self.m, self.block, self.shape = m, block, shape
        x, weight, root = (m.floats(shape.length) for _ in range(3))
        self.part = SubBlock(x, weight, root, m.ints(shape.length // 8))
        self.points, self._tried = m.ints(shape.groups), m.ints(shape.groups)
        self._on_grid, self._tried_on_grid = m.ints(shape.groups), m.ints(shape.groups)

    def load(self, start: Index, weigh: Callable[[Elements], object]) -> Float:
        """Take in the elements from ``start`` on; returns the largest magnitude."""
        m, part = self.m, self.part
        source = self.block.x.part(start)
        weigh(Elements(source, part.weight, self.shape.length))

        def eight(k: Index) -> None:
            x, weight, root = source.part(k * 8), part.weight.part(k * 8), part.root.part(k * 8)
            magnitudes = [select(x[i] >= 0, x[i], -x[i]) for i in range(8)]
            signs = m.i32(0)
            for i in range(8):
                signs = signs | select(x[i] >= 0, m.i32(0), 1 << i)
                root[i] = weight[i].sqrt()
            if self.shape.even_signs:
                signs, magnitudes = _made_even(m, signs, magnitudes, [weight[i] * x[i] * x[i] for i in range(8)])
            part.signs[k] = signs
            for i in range(8):
                part.x[k * 8 + i] = magnitudes[i]

        m.fold(self.shape.length // 8, eight)

        def larger(i: Index, high: Float) -> Float:
            return select(high > part.x[i + 1], high, part.x[i + 1])

        largest: Float = m.fold(self.shape.length - 1, larger, part.x[0])
        return largest

    def attempts(self, divisor: Float, scale: Float, *, on_grid: bool) -> Float:
        """Try all scales around ``divisor``; fills ``points`` and returns the best scale, or the one given."""
        m, shape = self.m, self.shape
        numerators = m.constants(shape.numerators())

        def clear(k: Index) -> None:
            self.points[k], self._on_grid[k] = m.i32(0), m.i32(int(on_grid))

        def attempt(step: Index, best: Float, scale: Float) -> tuple[Float, Float]:
            inverse = numerators[step] / divisor
            this_scale = 1.0 / inverse

            def place_group(k: Index) -> None:
                point = self._round_and_place(k, (this_scale, inverse))
                self._tried[k], self._tried_on_grid[k] = point.entry, point.on_grid

            m.fold(shape.groups, place_group)
            qx, q2 = _sums(m, shape, self.part, self._tried)
            better = (q2 > 0) & (qx * qx > best * q2)

            def keep(k: Index) -> None:
                self.points[k] = select(better, self._tried[k], self.points[k])
                self._on_grid[k] = select(better, self._tried_on_grid[k], self._on_grid[k])

            m.fold(shape.groups, keep)
            return select(better, qx / q2 * qx, best), select(better, qx / q2, scale)

        m.fold(shape.groups, clear)
        _, best_scale = m.fold(2 * shape.tries + 1, attempt, m.f32(0), scale)
        latest: Float = best_scale
        return latest

    def place_again(self, scale: Float, *, only_off_grid: bool, if_off_grid: bool) -> Float:
        """Place groups once more with the scale found, and fit the scale to them.

        Args:
            scale: The scale found; nothing is done where it is not positive.
            only_off_grid: Leave groups alone whose rounding was a point.
            if_off_grid: Leave sub-blocks alone in which all were.
        """
        m, shape = self.m, self.shape
        off_grid = m.fold(shape.groups, lambda k, count: count + (m.i32(1) - self._on_grid[k]), m.i32(0))
        redo = scale > 0
        if if_off_grid:
            redo = redo & (off_grid > 0)
        inverse = 1.0 / scale

        def place_group(k: Index) -> None:
            point = self._round_and_place(k, (scale, inverse))
            this = redo & (self._on_grid[k] == 0) if only_off_grid else redo
            self.points[k] = select(this, point.entry, self.points[k])

        m.fold(shape.groups, place_group)
        qx, q2 = _sums(m, shape, self.part, self.points)
        return select(redo & (q2 > 0), qx / q2, scale)

    def _round_and_place(self, group: Index, scale: tuple[Float, Float]) -> Point:
        """Place a group at a scale, given with its inverse."""
        this_scale, inverse = scale
        shape = self.shape
        x, root = self.part.x.part(group * shape.group), self.part.root.part(group * shape.group)
        rounded = [nearest_level(0.5 * (inverse * x[i] - 1.0), 0, shape.n_levels - 1) for i in range(shape.group)]

        errors = []
        for i in range(shape.group):
            differences = [this_scale * float(2 * level + 1) - x[i] for level in range(shape.n_levels)]
            errors.append([root[i] * difference * difference for difference in differences])
        return place(self.m, self.block.table, rounded, errors)

    def positive(self, scale: Float, zero: Mask) -> FinishedSubBlock:
        """Move the sign of a negative scale into the signs; blank what is zero."""
        mask = 127 if self.shape.even_signs else 255
        negative = scale < 0

        def turn(k: Index) -> None:
            signs = self.part.signs[k] & mask
            signs = select(negative, signs ^ mask, signs)
            self.part.signs[k] = select(zero, self.m.i32(0), signs)

        def blank(k: Index) -> None:
            self.points[k] = select(zero, self.m.i32(0), self.points[k])

        self.m.fold(self.shape.length // 8, turn)
        self.m.fold(self.shape.groups, blank)
        return FinishedSubBlock(select(zero, self.m.f32(0), select(negative, -scale, scale)), zero)

    def index(self, group: Index) -> Int:
        """Index of a group's point."""
        return self.points[group] >> 16


def _made_even(m: Machine, signs: Int, magnitudes: list[Float], costs: list[Float]) -> tuple[Int, list[Float]]:
    """Turn the sign of the element that costs least, where the number of minus signs is odd."""
    parity = signs ^ (signs >> 4)
    parity = parity ^ (parity >> 2)
    odd = ~(((parity ^ (parity >> 1)) & 1) == 0)
    least, cheapest = m.i32(0), costs[0]
    for i in range(1, 8):
        better = costs[i] < cheapest
        least, cheapest = select(better, m.i32(i), least), select(better, costs[i], cheapest)
    turned = [odd & (least == i) for i in range(8)]
    for i in range(8):
        signs = signs ^ select(turned[i], m.i32(1 << i), 0)
    return signs, [select(turned[i], -magnitudes[i], magnitudes[i]) for i in range(8)]


def search_around(search: Search, j: Index, weigh: Callable[[Elements], object]) -> FinishedSubBlock:
    """What IQ2_XS, IQ2_S and IQ3_XXS share: around the scale that maps the largest to the top level."""
    shape = search.shape
    largest = search.load(j * shape.length, weigh)
    scale = search.attempts(largest, largest / (2 * shape.n_levels - 1), on_grid=True)
    scale = search.place_again(scale, only_off_grid=True, if_off_grid=True)
    return search.positive(scale, largest < shape.smallest)


def small_scale(scale: Float, inverse: Float) -> Int:
    """A sub-block's scale as an odd multiple of the block's: 0 .. 15."""
    return limited(nearest_int(0.5 * (inverse * scale - 1.0)), 0, 15)


def put_step(block: Block, largest: Float, factor: float) -> tuple[Mask, Float]:
    """Write the step; whether the block has any scale, and the inverse of the step before its correction."""
    used = largest != 0
    step = largest / 31
    block.out.put(0, select(used, half_bits(step * factor), 0), 2)
    return used, 1.0 / step


def put_scale_nibbles(
    m: Machine, block: Block, offset: int, scales: Array[Float], *, count: int, step: tuple[Mask, Float]
) -> None:
    """Write small scales, two to each of ``count`` bytes, or 0 where there are none; ``step`` is :func:`put_step`'s."""
    used, inverse = step

    def put(j: Index) -> None:
        low, high = (small_scale(scales[j * 2 + k], inverse) for k in range(2))
        block.out.put(j + offset, select(used, low | (high << 4), 0), 1)

    m.fold(count, put)

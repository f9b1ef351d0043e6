"""IQ1_S and IQ1_M: every element is one of three values around an offset, eight of them a point of a grid.

In a sub-block (32 elements, or 16) the values are ``-1, 0, 1``, moved by 1/8 up or down. Sorted, the elements fall
into three runs; all pairs of run limits and both signs of the offset are tried (in IQ1_M a sign for each half of 8),
with sums taken from prefix sums, and the one with the least weighted squared error wins. Groups of eight are then
moved to points of the grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from worker.models.kernels.error_weights import by_importance, by_square, sum_of_squares
from worker.models.kernels.fit_scale import Elements
from worker.models.kernels.grid_search import place
from worker.models.kernels.lanes import Array, Float, Index, Int, Mask, Scratch, select
from worker.models.kernels.machine import LARGEST_FLOAT, Block, Machine
from worker.models.kernels.rounding import half_bits, limited, nearest_int

UP = (-0.875, 0.125, 1.125)
DOWN = (-1.125, -0.125, 0.875)
"""The three values with the offset up and down."""
SMALLEST_S = 1e-12
SMALLEST_M = 1e-7
"""A sub-block whose largest magnitude is below this becomes zero."""


class Split(NamedTuple):
    """The best run limits so far."""

    score: Float
    scale: Float
    first: Int
    """How many elements have the lowest value."""
    second: Int
    """How many have the lowest or the middle value."""
    signs: Int
    """Which offsets; -1 while nothing was found."""

    def updated(self, m: Machine, sums: tuple[Float, Float], limits: tuple[Int, Int], signs: int) -> Split:
        """With another candidate taken into account."""
        qx, q2 = sums
        better = (q2 > 0) & (qx * qx > self.score * q2)
        scale = qx / q2
        return Split(
            select(better, scale * qx, self.score),
            select(better, scale, self.scale),
            select(better, limits[0], self.first),
            select(better, limits[1], self.second),
            select(better, m.i32(signs), self.signs),
        )


def ranks(m: Machine, x: Array[Float], length: int, rank: Array[Int]) -> None:
    """Position of every element in ascending order; equal ones keep their order."""

    def clear(i: Index) -> None:
        rank[i] = m.i32(0)

    def insert(i: Index) -> None:
        value = x[i + 1]

        def compare(j: Index, smaller: Int) -> Int:
            after = x[j] <= value
            rank[j] = rank[j] + select(after, m.i32(0), 1)
            return smaller + select(after, m.i32(1), 0)

        rank[i + 1] = m.fold(i + 1, compare, m.i32(0))

    m.fold(length, clear)
    m.fold(length - 1, insert)


def _largest(m: Machine, x: Array[Float], length: int) -> Float:
    largest: Float = m.fold(length, lambda i, high: select(high > abs(x[i]), high, abs(x[i])), m.f32(0))
    return largest


class Groups:
    """The eights of a sub-block and the points they are moved to."""

    def __init__(self, m: Machine, block: Block, elements: Elements) -> None:
        self.m, self.block, self.elements = m, block, elements
        self.points = m.ints(elements.length // 8)

    def place(self, rank: Array[Int], split: Split, offsets: Array[Int]) -> Float:
        """Place all groups at a split whose scale is not negative; returns the scale, fitted anew if one had to move.

        ``offsets`` says for each group whether its offset is down.
        """
        m, (x, w, length) = self.m, self.elements
        mirrored = split.scale < 0
        scale = abs(split.scale)

        def group(k: Index, all_on_grid: Int) -> Int:
            low, middle, high = self.values(offsets[k])
            levels, errors = [], []
            for i in range(8):
                place_in_order = rank[k * 8 + i]
                level = select(
                    place_in_order < split.first, m.f32(0), select(place_in_order < split.second, m.f32(1), 2.0)
                )
                levels.append(select(mirrored, 2.0 - level, level))
                differences = [scale * value - x[k * 8 + i] for value in (low, middle, high)]
                errors.append([w[k * 8 + i] * difference * difference for difference in differences])
            point = place(m, self.block.table, levels, errors)
            self.points[k] = point.entry
            return all_on_grid & point.on_grid

        def add(k: Index, qx: Float, q2: Float) -> tuple[Float, Float]:
            return self.add_fit(k, self.points[k], self.values(offsets[k]), (qx, q2))

        on_grid = m.fold(length // 8, group, m.i32(1))
        qx, q2 = m.fold(length // 8, add, m.f32(0), m.f32(0))
        fitted: Float = select((on_grid == 0) & (qx > 0) & (q2 > 0), qx / q2, scale)
        return fitted

    def values(self, down: Int) -> tuple[Float, Float, Float]:
        """The three values of a group."""
        low, middle, high = (select(down > 0, self.m.f32(b), a) for a, b in zip(UP, DOWN, strict=True))
        return low, middle, high

    def add_fit(
        self, k: Index, point: Int, values: tuple[Float, Float, Float], sums: tuple[Float, Float]
    ) -> tuple[Float, Float]:
        """Add a group to the sums of weight * value * x and weight * value**2."""
        x, w, _ = self.elements
        qx, q2 = sums
        for i in range(8):
            level = (point >> (2 * i)) & 3
            value = select(level == 0, values[0], select(level == 1, values[1], values[2]))
            weighted = w[k * 8 + i] * value
            qx, q2 = qx + weighted * x[k * 8 + i], q2 + weighted * value
        return qx, q2


def quantize_iq1_s(m: Machine, block: Block) -> None:
    """IQ1_S, which needs importance weights."""
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256
    weights, rank, offsets = m.floats(32), m.ints(32), m.ints(4)
    sum_x, sum_w = m.floats(33), m.floats(33)
    scales, high_bits, shifts = m.floats(8), m.ints(8), m.ints(8)
    groups = Groups(m, block, Elements(m.floats(32), weights, 32))

    def sub_block(j: Index, largest_scale: Float) -> Float:
        elements = groups.elements
        _copy(m, block.x.part(j * 32), elements)
        by_importance(m, block, j * 32, sigma2, elements)
        largest = _largest(m, elements.x, 32)
        ranks(m, elements.x, 32, rank)
        _prefix_sums(m, elements, rank, (sum_x, sum_w))
        split = _best_split_s(m, (sum_x, sum_w), largest)
        zero = (largest < SMALLEST_S) | (split.signs < 0)
        down = select(split.scale < 0, m.i32(1) - split.signs, split.signs)

        def set_offset(k: Index) -> None:
            offsets[k] = down

        m.fold(4, set_offset)
        scale = select(zero, m.f32(0), groups.place(rank, split, offsets))
        upper = m.i32(0)
        for k in range(4):
            index = select(zero, m.i32(0), groups.points[k] >> 16)
            block.out.put(j * 4 + (2 + k), index, 1)
            upper = upper | ((index >> 8) << (3 * k))
        scales[j], high_bits[j], shifts[j] = scale, upper, select(zero, m.i32(0), down)
        return select(largest_scale > scale, largest_scale, scale)

    largest = m.fold(8, sub_block, m.f32(0))
    used = largest != 0
    step = largest / 15
    block.out.put(0, select(used, half_bits(step * 1.125), 0), 2)
    inverse = 1.0 / step

    def put_high(j: Index) -> None:
        small = limited(nearest_int(0.5 * (inverse * scales[j] - 1.0)), 0, 7) | (shifts[j] << 3)
        block.out.put(j * 2 + 34, high_bits[j] | select(used, small << 12, 0), 2)

    m.fold(8, put_high)


def _copy(m: Machine, source: Array[Float], elements: Elements) -> None:
    def one(i: Index) -> None:
        elements.x[i] = source[i]

    m.fold(elements.length, one)


def _prefix_sums(m: Machine, elements: Elements, rank: Array[Int], sums: tuple[Scratch[Float], Scratch[Float]]) -> None:
    """Sums over the elements in ascending order: of weight times value, and of weights."""
    x, w, length = elements
    sum_x, sum_w = sums

    def sort(i: Index) -> None:
        sum_x.scatter(rank[i] + 1, w[i] * x[i])
        sum_w.scatter(rank[i] + 1, w[i])

    def add(i: Index, total_x: Float, total_w: Float) -> tuple[Float, Float]:
        total_x, total_w = total_x + sum_x[i + 1], total_w + sum_w[i + 1]
        sum_x[i + 1], sum_w[i + 1] = total_x, total_w
        return total_x, total_w

    sum_x[0] = sum_w[0] = m.f32(0)
    m.fold(length, sort)
    m.fold(length, add, m.f32(0), m.f32(0))


def _best_split_s(m: Machine, sums: tuple[Array[Float], Array[Float]], largest: Float) -> Split:
    """Best limits of a sub-block of IQ1_S; ``signs`` is 0 for the offset up and 1 for down."""
    sum_x, sum_w = sums

    def first_limit(i: Index, *state: Any) -> Split:
        def second_limit(k: Index, *state: Any) -> Split:
            j = i + k
            split, limits = Split(*state), (m.counter(i), m.counter(j))
            parts_x = (sum_x[i], sum_x[j] - sum_x[i], sum_x[32] - sum_x[j])
            parts_w = (sum_w[i], sum_w[j] - sum_w[i], sum_w[32] - sum_w[j])
            for signs, (low, middle, high) in enumerate((UP, DOWN)):
                qx = parts_x[0] * low + parts_x[1] * middle + parts_x[2] * high
                q2 = parts_w[0] * low * low + parts_w[1] * middle * middle + parts_w[2] * high * high
                split = split.updated(m, (qx, q2), limits, signs)
            return split

        return Split(*m.fold(33 - i, second_limit, *state))

    return Split(*m.fold(33, first_limit, *_no_split(m, largest)))


def _no_split(m: Machine, largest: Float) -> Split:
    return Split(m.f32(-LARGEST_FLOAT), largest, m.i32(-1), m.i32(-1), m.i32(-1))


def quantize_iq1_m(m: Machine, block: Block) -> None:
    """IQ1_M without importance weights: elements weigh by their square."""
    _quantize_iq1_m(m, block, weighted=False)


def quantize_iq1_m_weighted(m: Machine, block: Block) -> None:
    """IQ1_M with importance weights."""
    _quantize_iq1_m(m, block, weighted=True)


def _quantize_iq1_m(m: Machine, block: Block, *, weighted: bool) -> None:
    groups = Groups(m, block, Elements(m.floats(16), m.floats(16), 16))
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256
    sub_blocks = _SubBlocksM(m)
    rank = m.ints(16)

    def load(j: Index) -> None:
        _copy(m, block.x.part(j * 16), groups.elements)
        if weighted:
            by_importance(m, block, j * 16, sigma2, groups.elements)
        else:
            by_square(m, groups.elements)

    def sub_block(j: Index, largest_scale: Float) -> Float:
        load(j)
        largest = _largest(m, groups.elements.x, 16)
        ranks(m, groups.elements.x, 16, rank)
        split = _best_split_m(m, groups.elements, rank, largest)
        zero = (largest < SMALLEST_M) | (split.signs < 0)
        signs = select(zero, m.i32(0), select(split.scale < 0, m.i32(3) - split.signs, split.signs))
        sub_blocks.set_signs(j, signs)
        scale = select(zero, m.f32(0), groups.place(rank, split, sub_blocks.offsets.part(j * 2)))
        sub_blocks.keep(j, scale, groups.points, zero)
        return select(largest_scale > scale, largest_scale, scale)

    def fit(j: Index, qx: Float, q2: Float) -> tuple[Float, Float]:
        load(j)
        factor = (sub_blocks.multiples[j] + sub_blocks.multiples[j] + 1).to_float()
        for k in range(2):
            low, middle, high = groups.values(sub_blocks.offsets[j * 2 + k])
            values = (low * factor, middle * factor, high * factor)
            qx, q2 = groups.add_fit(k, sub_blocks.points[j * 2 + k], values, (qx, q2))
        return qx, q2

    largest = m.fold(16, sub_block, m.f32(0))
    step = largest / 15
    sub_blocks.set_multiples(1.0 / step)
    qx, q2 = m.fold(16, fit, m.f32(0), m.f32(0))
    sub_blocks.put(block, select(q2 > 0, qx / q2, step), largest != 0)


class _SubBlocksM:
    """What is kept of the sub-blocks of an IQ1_M block."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.scales, self.multiples = m.floats(16), m.ints(16)
        self.points, self.offsets = m.ints(32), m.ints(32)

    def set_signs(self, j: Index, signs: Int) -> None:
        """Offsets of both halves: bit 1 is the first half's."""
        self.offsets[j * 2], self.offsets[j * 2 + 1] = (signs >> 1) & 1, signs & 1

    def keep(self, j: Index, scale: Float, points: Array[Int], zero: Mask) -> None:
        """A finished sub-block; one of zeros has the first point, as a reader will see it."""
        self.scales[j] = scale
        for k in range(2):  # the first point, with level 0 everywhere, is packed as 0
            self.points[j * 2 + k] = select(zero, self.m.i32(0), points[k])

    def set_multiples(self, inverse: Float) -> None:
        """Scales as odd multiples of the block's."""

        def one(j: Index) -> None:
            self.multiples[j] = limited(nearest_int(0.5 * (inverse * self.scales[j] - 1.0)), 0, 7)

        self.m.fold(16, one)

    def put(self, block: Block, scale: Float, used: Mask) -> None:
        """Write 32 bytes of point index, 16 of its upper bits and the offsets, and 8 of scales."""
        m = self.m
        half = half_bits(scale * 1.1125)

        def put_points(j: Index) -> None:
            first, second = self.points[j * 2] >> 16, self.points[j * 2 + 1] >> 16
            block.out.put(j * 2, (first & 255) | ((second & 255) << 8), 2)
            offsets = (self.offsets[j * 2] << 3) | (self.offsets[j * 2 + 1] << 7)
            block.out.put(j + 32, (first >> 8) | ((second >> 8) << 4) | select(used, offsets, 0), 1)

        m.fold(16, put_points)
        for j in range(4):
            a, b, c, d = (self.multiples[4 * j + k] << (3 * k) for k in range(4))
            part = ((half >> (4 * j)) & 15) << 12
            block.out.put(48 + 2 * j, select(used, a | b | c | d | part, 0), 2)


def _best_split_m(m: Machine, elements: Elements, rank: Array[Int], largest: Float) -> Split:
    """Best limits of a sub-block of IQ1_M; ``signs`` is 0 .. 3, one bit for each half, the first half's upper."""
    sums = [_HalfSums(m, elements, rank, half) for half in range(2)]

    def first_limit(i: Index, *state: Any) -> Split:
        def second_limit(k: Index, *state: Any) -> Split:
            j = i + k
            split, limits = Split(*state), (m.counter(i), m.counter(j))
            (first_up, first_down), (second_up, second_down) = (half.both(i, j) for half in sums)
            pairs = ((first_up, second_up), (first_up, second_down), (first_down, second_up), (first_down, second_down))
            for signs, (a, b) in enumerate(pairs):
                split = split.updated(m, (a[0] + b[0], a[1] + b[1]), limits, signs)
            return split

        return Split(*m.fold(17 - i, second_limit, *state))

    return Split(*m.fold(17, first_limit, *_no_split(m, largest)))


class _HalfSums:
    """Prefix sums, in the order of the whole sub-block, over the elements of one half."""

    def __init__(self, m: Machine, elements: Elements, rank: Array[Int], half: int) -> None:
        self.x, self.w = m.floats(17), m.floats(17)
        for array in (self.x, self.w):
            array[0] = m.f32(0)

        def sort(i: Index) -> None:
            mine = m.counter(i) < 8
            weight = elements.w[i]
            zero = m.f32(0)
            if half:
                mine = ~mine
            self.x.scatter(rank[i] + 1, select(mine, weight * elements.x[i], zero))
            self.w.scatter(rank[i] + 1, select(mine, weight, zero))

        def add(i: Index, x: Float, w: Float) -> tuple[Float, Float]:
            x, w = x + self.x[i + 1], w + self.w[i + 1]
            self.x[i + 1], self.w[i + 1] = x, w
            return x, w

        m.fold(16, sort)
        self.total_x, self.total_w = m.fold(16, add, m.f32(0), m.f32(0))

    def both(self, i: Index, j: Index) -> tuple[tuple[Float, Float], tuple[Float, Float]]:
        """Sums of weight * x * value and weight * value**2 at limits ``i`` and ``j``, with the offset up and down."""
        outer = self.x[i] + self.x[j]
        up, down = (
            (
                self.total_x * high - outer,
                self.total_w * high * high
                + self.w[i] * (low * low - middle * middle)
                + self.w[j] * (middle * middle - high * high),
            )
            for low, middle, high in (UP, DOWN)
        )
        return up, down

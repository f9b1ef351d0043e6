"""TQ1_0, TQ2_0, Q2_0 and Q1_0: three values, or two, times a scale. None of them takes notice of importance weights.

They lose most of an ordinary model; weights that were trained on such values come through as they are.
"""

from __future__ import annotations

from worker.models.kernels.lanes import Float, Index, Int, select
from worker.models.kernels.machine import Block, Machine
from worker.models.kernels.packing import put_quarters, word
from worker.models.kernels.rounding import half_bits, round_half_away

BEYOND = 2147483648.0
"""Numbers of this size and more become the lowest integer where C casts them, and NaN does."""


class _Scaled:
    """A block's largest magnitude, and its elements divided by it."""

    def __init__(self, m: Machine, block: Block, length: int) -> None:
        x = block.x
        largest: Float = m.fold(length, lambda i, high: select(high < abs(x[i]), abs(x[i]), high), m.f32(0), unroll=4)
        self.scale = largest
        self._x = x
        self._inverse: Float = select(largest != 0, 1.0 / largest, 0.0)

    def __getitem__(self, position: Index) -> Float:
        return self._x[position] * self._inverse


def quantize_tq2_0(m: Machine, block: Block) -> None:
    """TQ2_0: four values of two bits to a byte, the scale behind them."""
    scaled = _Scaled(m, block, 256)
    levels = m.ints(256)

    def level(i: Index) -> None:
        levels[i] = _ternary(scaled[i])

    m.fold(256, level, unroll=4)
    put_quarters(m, block, 0, levels)
    block.out.put(64, half_bits(scaled.scale), 2)


def quantize_tq1_0(m: Machine, block: Block) -> None:
    """TQ1_0: five values to a byte as digits of a number of base 3, in runs of 32, then of 16, then four of 4."""
    scaled = _Scaled(m, block, 256)

    def put(first: int, run: int, digits: int, offset: int) -> None:
        def put_word(k: Index) -> None:
            block.out.put(
                k * 4 + offset, word([_number(m, scaled, k * 4 + (first + i), run, digits) for i in range(4)]), 4
            )

        m.fold(run // 4, put_word)

    put(0, 32, 5, 0)
    put(160, 16, 5, 32)
    put(240, 4, 4, 48)
    block.out.put(52, half_bits(scaled.scale), 2)


def quantize_q2_0(m: Machine, block: Block) -> None:
    """Q2_0: four values of two bits to a byte, side by side; the fourth value is never met."""
    scaled = _Scaled(m, block, 64)
    block.out.put(0, half_bits(scaled.scale), 2)

    def level(value: Float) -> Int:
        within = abs(value) < BEYOND
        return select(within, _ternary(value), 0)

    def put_word(k: Index) -> None:
        parts = []
        for i in range(4):
            a, b, c, d = (level(scaled[k * 16 + (i * 4 + j)]) << (2 * j) for j in range(4))
            parts.append(a | b | c | d)
        block.out.put(k * 4 + 2, word(parts), 4)

    m.fold(4, put_word)


def quantize_q1_0(m: Machine, block: Block) -> None:
    """Q1_0: the signs of 128 numbers, and their mean magnitude."""
    x = block.x
    total = m.fold(128, lambda i, total: total + abs(x[i]), m.f32(0), unroll=4)
    block.out.put(0, half_bits(total / 128), 2)

    def put_word(k: Index) -> None:
        def sign(i: Index, bits: Int) -> Int:
            return (bits >> 1) | select(x[k * 32 + i] >= 0, m.i32(-0x80000000), 0)

        block.out.put(k * 4 + 2, m.fold(32, sign, m.i32(0)), 4)

    m.fold(4, put_word)


def _ternary(value: Float) -> Int:
    """0, 1 or 2 for the nearest of -1, 0 and 1."""
    return round_half_away(value) + 1


def _number(m: Machine, scaled: _Scaled, position: Index, run: int, digits: int) -> Int:
    """Every ``run``-th value as a digit of base 3, then so scaled that a reader takes digits off by multiplying."""
    number = m.i32(0)
    for digit in range(digits):
        number = number * 3 + _ternary(scaled[position + digit * run])
    for _ in range(5 - digits):
        number = number * 3
    return _divided_by_243((number << 8) + 242)


def _divided_by_243(number: Int) -> Int:
    """The quotient of ``256 * q + 242`` for ``q`` below 256, by multiplying."""
    return ((number * 69043) >> 24) & 255  # 2**24 / 243 is 69042.03

"""MXFP4: blocks of 32 four-bit floats with a power of two as scale (OCP Microscaling). Weights change nothing.

The scale is ``2 ** (floor(log2f(largest)) - 2)``. ``log2f`` rounds: numbers a few steps below a power of two come out
as that power, more of them the larger the exponent, and so does it here.
"""

from __future__ import annotations

from worker.models.kernels.lanes import Float, Index, Int, select
from worker.models.kernels.machine import Block, Machine
from worker.models.kernels.packing import put_block_nibbles

LENGTH = 32
VALUES = (0, 1, 2, 3, 4, 6, 8, 12)
"""``kvalues_mxfp4`` (twice the numbers of E2M1); eight more are their negatives."""
_ROUNDED_UP = ((2, 1), (4, 2), (8, 5), (16, 11), (32, 22), (64, 44), (128, 88))
"""From which exponent on how many numbers below a power of two ``log2f`` takes for it: ``floor(2**p * ln 2)``, as the
spacing of floats at ``log2f``'s result is ``2 ** (p - 23)``."""


def quantize_mxfp4(m: Machine, block: Block) -> None:
    """MXFP4, with importance weights or without."""
    x = block.x
    largest = m.fold(LENGTH, lambda i, high: select(high < abs(x[i]), abs(x[i]), high), m.f32(0), unroll=4)
    exponent = select(largest > 0, (_floor_of_log2(largest) + 125) & 255, 0)
    scale = _half_power(exponent)
    block.out.put(0, exponent, 1)
    levels = m.ints(LENGTH)

    def level(i: Index) -> None:
        levels[i] = _nearest_index(m, x[i], scale)

    m.fold(LENGTH, level, unroll=2)
    put_block_nibbles(m, block, 1, levels)


def _floor_of_log2(value: Float) -> Int:
    """``(int) floorf(log2f(value))`` of a positive number."""
    tiny = value < 2.0**-126
    bits = select(tiny, value * 2.0**23, value).bits()
    next_power = (bits >> 23) - select(tiny, value.machine.i32(149), 126)
    below = (bits & 0x7FFFFF) ^ 0x7FFFFF
    distance = select(next_power > 0, next_power - 1, value.machine.i32(0) - next_power)
    reach = value.machine.i32(0)
    for start, count in _ROUNDED_UP:
        reach = select(distance < start, reach, count)
    return select(below < reach, next_power, next_power - 1)


def _half_power(exponent: Int) -> Float:
    """Half of ``2 ** (exponent - 127)`` (``GGML_E8M0_TO_FP32_HALF``)."""
    smallest = select(exponent == 0, exponent.machine.i32(0x00200000), 0x00400000)
    return select(exponent < 2, smallest, (exponent - 1) << 23).as_float()


def _nearest_index(m: Machine, x: Float, scale: Float) -> Int:
    """The first index with the least error; the sign is the fourth bit, which a zero does not have."""
    size = abs(x)
    best, index = size, m.i32(0)
    for position, value in enumerate(VALUES[1:], start=1):
        error = abs(scale * value - size)
        better = error < best
        best, index = select(better, error, best), select(better, m.i32(position), index)
    return select((x < 0) & (index > 0), index | 8, index)

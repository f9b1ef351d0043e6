"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 with one scale, and in the ``_1`` types a minimum.

Without importance weights the scale follows from the extremes alone; with them it is searched as in the K-quants, and
elements also weigh by how they compare to the mean square of their whole row. Q8_0 takes no notice of weights.
"""

from __future__ import annotations

from worker.models.kernels.error_weights import by_importance
from worker.models.kernels.fit_affine import SearchRange, affine_level, fit_affine_weighted, limit_then_round
from worker.models.kernels.fit_scale import Elements, fit_symmetric, largest_magnitude, symmetric_level
from worker.models.kernels.lanes import Array, Float, Index, Int, select
from worker.models.kernels.machine import Block, Machine
from worker.models.kernels.packing import put_block_nibbles, word
from worker.models.kernels.rounding import half_bits, round_half_away, sign_extended

LENGTH = 32


def quantize_q8_0(m: Machine, block: Block) -> None:
    """Q8_0: the largest magnitude becomes 127; halves round away from zero."""
    x = block.x
    largest = m.fold(LENGTH, lambda i, high: select(high > abs(x[i]), high, abs(x[i])), m.f32(0), unroll=4)
    step, inverse = _step(largest / 127)
    block.out.put(0, half_bits(step), 2)

    def put_word(k: Index) -> None:
        levels = [round_half_away(x[k * 4 + i] * inverse) & 255 for i in range(4)]
        block.out.put(k * 4 + 2, word(levels), 4)

    m.fold(8, put_word)


def quantize_q4_0(m: Machine, block: Block) -> None:
    """Q4_0 without importance weights: the element of the largest magnitude becomes level 0."""
    _from_extreme(m, block, top=8)


def quantize_q5_0(m: Machine, block: Block) -> None:
    """Q5_0 without importance weights: the element of the largest magnitude becomes level 0."""
    _from_extreme(m, block, top=16)


def quantize_q4_1(m: Machine, block: Block) -> None:
    """Q4_1 without importance weights: the lowest element becomes level 0 and the highest 15."""
    _from_range(m, block, top=15)


def quantize_q5_1(m: Machine, block: Block) -> None:
    """Q5_1 without importance weights: the lowest element becomes level 0 and the highest 31."""
    _from_range(m, block, top=31)


def quantize_q4_0_weighted(m: Machine, block: Block) -> None:
    """Q4_0 with importance weights."""
    _search_symmetric(m, block, top=8)


def quantize_q5_0_weighted(m: Machine, block: Block) -> None:
    """Q5_0 with importance weights."""
    _search_symmetric(m, block, top=16)


def quantize_q4_1_weighted(m: Machine, block: Block) -> None:
    """Q4_1 with importance weights."""
    _search_affine(m, block, top=15)


def quantize_q5_1_weighted(m: Machine, block: Block) -> None:
    """Q5_1 with importance weights."""
    _search_affine(m, block, top=31)


def _step(step: Float) -> tuple[Float, Float]:
    """A scale and its inverse, which is 0 for 0."""
    return step, select(step != 0, 1.0 / step, 0.0)


def _from_extreme(m: Machine, block: Block, top: int) -> None:
    step, inverse = _step(largest_magnitude(m, block.x, LENGTH) / -top)
    levels = m.ints(LENGTH)

    def level(i: Index) -> None:
        level_of_x = sign_extended((block.x[i] * inverse + (top + 0.5)).truncated())
        levels[i] = select(level_of_x < 2 * top - 1, level_of_x, 2 * top - 1)

    m.fold(LENGTH, level, unroll=4)
    block.out.put(0, half_bits(step), 2)
    _put_levels(m, block, 2, levels, five_bits=top == 16)


def _from_range(m: Machine, block: Block, top: int) -> None:
    def extremes(i: Index, low: Float, high: Float) -> tuple[Float, Float]:
        value = block.x[i]
        return select(value < low, value, low), select(value > high, value, high)

    largest_float = 3.4028234663852886e38
    low, high = m.fold(LENGTH, extremes, m.f32(largest_float), m.f32(-largest_float), unroll=4)
    step, inverse = _step((high - low) / top)
    levels = m.ints(LENGTH)

    def level(i: Index) -> None:
        level_of_x = ((block.x[i] - low) * inverse + 0.5).truncated()
        if top == 15:  # Q5_1 has no limit in ggml, and needs none
            level_of_x = sign_extended(level_of_x)
            level_of_x = select(level_of_x < top, level_of_x, top)
        levels[i] = level_of_x

    m.fold(LENGTH, level, unroll=4)
    block.out.put(0, half_bits(step), 2)
    block.out.put(2, half_bits(low), 2)
    _put_levels(m, block, 4, levels, five_bits=top == 31)


def _weighted(m: Machine, block: Block) -> Elements:
    elements = Elements(block.x, m.floats(LENGTH), LENGTH)
    by_importance(m, block, 0, block.row_mean, elements)
    return elements


def _search_symmetric(m: Machine, block: Block, top: int) -> None:
    fitted = fit_symmetric(m, _weighted(m, block), top)
    levels = m.ints(LENGTH)

    def level(i: Index) -> None:
        levels[i] = symmetric_level(fitted, block.x[i], top).truncated()

    m.fold(LENGTH, level, unroll=4)
    block.out.put(0, half_bits(fitted.scale), 2)
    _put_levels(m, block, 2, levels, five_bits=top == 16)


def _search_affine(m: Machine, block: Block, top: int) -> None:
    fitted = fit_affine_weighted(m, _weighted(m, block), SearchRange(top, -0.9, 0.05, 36))
    levels = m.ints(LENGTH)

    def level(i: Index) -> None:
        levels[i] = affine_level(fitted, block.x[i], top, limit_then_round).truncated()

    m.fold(LENGTH, level, unroll=4)
    block.out.put(0, half_bits(fitted.scale), 2)
    block.out.put(2, half_bits(-fitted.minimum), 2)
    _put_levels(m, block, 4, levels, five_bits=top == 31)


def _put_levels(m: Machine, block: Block, offset: int, levels: Array[Int], *, five_bits: bool) -> None:
    """Low four bits in 16 bytes, the second half of the block on top of the first; before them the fifth bits."""
    if five_bits:
        first, second = (
            m.fold(16, lambda k, bits, run=run: (bits >> 1) | (((levels[k + run] >> 4) & 1) << 31), m.i32(0))
            for run in (0, 16)
        )
        block.out.put(offset, (first >> 16) | (second & -0x10000), 4)
        offset += 4
    put_block_nibbles(m, block, offset, levels)

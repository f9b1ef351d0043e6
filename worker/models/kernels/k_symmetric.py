"""Q3_K and Q6_K: blocks of 256 in sub-blocks of 16, each with a scale around zero.

The scales are themselves quantized, and the levels are then computed anew with what is left of them; where a quantized
scale is 0, the levels of the search stay.
"""

from __future__ import annotations

from worker.models.kernels.error_weights import by_importance, by_square, sum_of_squares
from worker.models.kernels.fit_scale import SMALLEST, Elements, Symmetric, fit_refined, fit_symmetric, symmetric_level
from worker.models.kernels.lanes import Array, Float, Index, Int, Mask, select
from worker.models.kernels.machine import Block, Machine
from worker.models.kernels.packing import put_bit_planes, put_quarters, word
from worker.models.kernels.rounding import half_bits, half_value, limited, nearest_int, nearest_level, sign_extended

SIDE_BY_SIDE = 4
"""Sub-blocks of Q3_K that are fitted at the same time: one alone leaves the processor waiting."""


class Levels:
    """Scales and levels of all sub-blocks, between the search and the end."""

    def __init__(self, m: Machine, top: int) -> None:
        self.m, self.top = m, top
        self.scales, self.found, self.factors, self.final = m.floats(16), m.floats(256), m.floats(16), m.ints(256)

    def keep(self, block: Block, j: Index, fitted: Symmetric) -> Float:
        """Store the fit of sub-block ``j`` and return its scale."""
        x, target = block.x.part(j * 16), self.found.part(j * 16)

        def level(i: Index) -> None:
            target[i] = symmetric_level(fitted, x[i], self.top)

        self.m.fold(16, level)
        self.scales[j] = fitted.scale
        return fitted.scale

    def refine(self, block: Block) -> None:
        """Fill ``final`` with the levels that fit a reader's scales (``factors``)."""

        def sub_block(j: Index) -> None:
            x, levels, target = block.x.part(j * 16), self.found.part(j * 16), self.final.part(j * 16)
            factor = self.factors[j]

            def level(i: Index) -> None:
                refined = nearest_level(x[i] / factor, -self.top, self.top - 1) + float(self.top)
                target[i] = select(factor == 0, levels[i], refined).truncated()

            self.m.fold(16, level, unroll=4)

        self.m.fold(16, sub_block)


def _larger(scale: Float, magnitude: Float, largest: Float) -> tuple[Float, Float]:
    """Scale of the largest magnitude so far."""
    better = abs(scale) > magnitude
    return select(better, abs(scale), magnitude), select(better, scale, largest)


def quantize_q6_k(m: Machine, block: Block) -> None:
    """Q6_K without importance weights: elements weigh by their square."""
    levels, weights = Levels(m, 32), m.floats(16)

    def fit(j: Index, magnitude: Float, largest: Float) -> tuple[Float, Float]:
        elements = Elements(block.x.part(j * 16), weights, 16)
        by_square(m, elements)
        return _larger(levels.keep(block, j, fit_symmetric(m, elements, 32)), magnitude, largest)

    magnitude, largest = m.fold(16, fit, m.f32(0), m.f32(0))
    _put_q6_k(m, block, levels, largest, magnitude < SMALLEST)


def quantize_q6_k_weighted(m: Machine, block: Block) -> None:
    """Q6_K with importance weights, which are used as they are."""
    levels = Levels(m, 32)

    def fit(j: Index, magnitude: Float, largest: Float) -> tuple[Float, Float]:
        elements = Elements(block.x.part(j * 16), block.importance.part(j * 16), 16)
        return _larger(levels.keep(block, j, fit_symmetric(m, elements, 32)), magnitude, largest)

    magnitude, largest = m.fold(16, fit, m.f32(0), m.f32(0))
    _put_q6_k(m, block, levels, largest, magnitude < SMALLEST)


def _put_q6_k(m: Machine, block: Block, levels: Levels, largest: Float, zero: Mask) -> None:
    """Write step, scales and levels; all of them are 0 in a block that is ``zero``."""
    inverse = -128.0 / largest
    step = select(zero, m.i32(0), half_bits(1.0 / inverse))
    block.out.put(208, step, 2)

    def put_scale(j: Index) -> None:
        scale = nearest_int(inverse * levels.scales[j])
        scale = select(zero, m.i32(0), select(scale < 127, scale, 127))
        block.out.put(j + 192, scale, 1)
        levels.factors[j] = half_value(step) * sign_extended(scale).to_float()

    m.fold(16, put_scale)
    levels.refine(block)

    def clear(i: Index) -> None:
        levels.final[i] = select(zero, m.i32(0), levels.final[i])

    m.fold(256, clear, unroll=4)
    m.fold(2, lambda half: _put_six_bits(m, block, half, levels.final.part(half * 128)))


def _put_six_bits(m: Machine, block: Block, half: Index, levels: Array[Int]) -> None:
    """Low four bits of 128 levels in 64 bytes, then, in a place of their own, the upper two in 32."""

    def put_words(k: Index) -> None:
        for run in range(2):
            low, high = levels.part(k * 4 + run * 32), levels.part(k * 4 + run * 32 + 64)
            block.out.put(
                half * 64 + k * 4 + run * 32, word([(low[i] & 15) | (high[i] & 15) << 4 for i in range(4)]), 4
            )
        upper = []
        for i in range(4):
            a, b, c, d = ((levels[k * 4 + i + 32 * run] >> 4) << (2 * run) for run in range(4))
            upper.append(a | b | c | d)
        block.out.put(half * 32 + k * 4 + 128, word(upper), 4)

    m.fold(8, put_words)


def quantize_q3_k(m: Machine, block: Block) -> None:
    """Q3_K without importance weights."""
    levels = Levels(m, 4)

    def fit(j: Index, magnitude: Float, largest: Float) -> tuple[Float, Float]:
        starts = [(j * SIDE_BY_SIDE + k) * 16 for k in range(SIDE_BY_SIDE)]
        parts = [(block.x.part(start), levels.found.part(start)) for start in starts]
        for k, scale in enumerate(fit_refined(m, parts, 16, 4)):
            levels.scales[j * SIDE_BY_SIDE + k] = scale
            magnitude, largest = _larger(scale, magnitude, largest)
        return magnitude, largest

    _, largest = m.fold(16 // SIDE_BY_SIDE, fit, m.f32(0), m.f32(0))
    none = largest == 0
    inverse = -32.0 / largest
    small = m.ints(16)

    def quantize_scale(j: Index) -> None:
        scale = limited(sign_extended(nearest_int(inverse * levels.scales[j])), -32, 31) + 32
        small[j] = select(none, m.i32(0), scale)

    m.fold(16, quantize_scale)
    _put_q3_k(m, block, levels, small, select(none, m.f32(0), 1.0 / inverse))


def quantize_q3_k_weighted(m: Machine, block: Block) -> None:
    """Q3_K with importance weights."""
    levels, weights, sum_weights, small = Levels(m, 4), m.floats(16), m.floats(16), m.ints(16)
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256

    def fit(j: Index) -> None:
        elements = Elements(block.x.part(j * 16), weights, 16)
        sum_weights[j] = by_importance(m, block, j * 16, sigma2, elements)
        levels.keep(block, j, fit_symmetric(m, elements, 4))

    m.fold(16, fit)
    fitted = fit_symmetric(m, Elements(levels.scales, sum_weights, 16), 32)

    def quantize_scale(j: Index) -> None:
        small[j] = symmetric_level(fitted, levels.scales[j], 32).truncated()

    m.fold(16, quantize_scale)
    _put_q3_k(m, block, levels, small, fitted.scale)


def _put_q3_k(m: Machine, block: Block, levels: Levels, small: Array[Int], scale: Float) -> None:
    """Write step, scales of six bits (stored with 32 added) and levels."""
    step = half_bits(scale)
    block.out.put(108, step, 2)
    for j in range(8):
        block.out.put(96 + j, (small[j] & 15) | ((small[j + 8] & 15) << 4), 1)
    for j in range(4):
        a, b, c, d = ((small[j + 4 * i] >> 4) << (2 * i) for i in range(4))
        block.out.put(104 + j, a | b | c | d, 1)
    for j in range(16):
        levels.factors[j] = half_value(step) * (small[j] - 32).to_float()
    levels.refine(block)
    put_bit_planes(m, block, 0, levels.final, 2)
    put_quarters(m, block, 32, levels.final)

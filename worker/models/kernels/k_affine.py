"""Q2_K, Q4_K and Q5_K: blocks of 256 in sub-blocks of 16 or 32, each with a scale and a minimum.

Scales and minima are themselves quantized, and the levels are then computed anew with what is left of them; where a
quantized scale is 0, the levels of the search stay. Each type has two forms, with and without importance weights,
which search differently.
"""

from __future__ import annotations

from worker.models.kernels.error_weights import by_importance, sum_of_squares
from worker.models.kernels.fit_affine import (
    Affine,
    Rounding,
    SearchRange,
    affine_level,
    fit_affine,
    fit_affine_weighted,
    limit_then_round,
    round_then_limit,
    squared,
)
from worker.models.kernels.fit_scale import Elements, fit_positive
from worker.models.kernels.lanes import Float, Index, Int, select
from worker.models.kernels.machine import Block, Machine
from worker.models.kernels.packing import put_bit_planes, put_nibbles, put_quarters, put_six_bit, six_bit
from worker.models.kernels.rounding import half_bits, half_value, limited, nearest_int, nearest_level


class Fits:
    """The fits of all sub-blocks, kept between the search and the final levels."""

    def __init__(self, m: Machine, length: int, top: int, rounding: Rounding) -> None:
        self.m, self.length, self.count, self.top, self.rounding = m, length, 256 // length, top, rounding
        self.scales, self.minima, self._inverses, self._lows = (m.floats(self.count) for _ in range(4))
        self._improved = m.ints(self.count)
        self.factors, self.offsets, self.levels = m.floats(self.count), m.floats(self.count), m.ints(256)

    def keep(self, j: Index, fitted: Affine) -> Affine:
        """Store the fit of sub-block ``j``."""
        self.scales[j], self.minima[j] = fitted.scale, fitted.minimum
        self._inverses[j], self._lows[j], self._improved[j] = fitted.inverse, fitted.low, fitted.improved
        return fitted

    def set_steps(self, j: Index, factor: Float, offset: Float) -> None:
        """Store the scale and the minimum that a reader will see for sub-block ``j``."""
        self.factors[j], self.offsets[j] = factor, offset

    def final_levels(self, block: Block) -> None:
        """Fill ``levels`` with the levels that fit a reader's scales and minima."""

        def sub_block(j: Index) -> None:
            x, target = block.x.part(j * self.length), self.levels.part(j * self.length)
            factor, offset = self.factors[j], self.offsets[j]
            fitted = Affine(self.scales[j], self.minima[j], self._inverses[j], self._lows[j], self._improved[j])

            def level(i: Index) -> None:
                as_fitted = affine_level(fitted, x[i], self.top, self.rounding)
                refined = nearest_level((x[i] + offset) / factor, 0, self.top)
                target[i] = select(factor == 0, as_fitted, refined).truncated()

            self.m.fold(self.length, level, unroll=4)

        self.m.fold(self.count, sub_block)


def larger(fitted: Affine, max_scale: Float, max_minimum: Float) -> tuple[Float, Float]:
    """Largest scale and minimum so far."""
    return (
        select(fitted.scale > max_scale, fitted.scale, max_scale),
        select(fitted.minimum > max_minimum, fitted.minimum, max_minimum),
    )


def quantize_q4_k(m: Machine, block: Block) -> None:
    """Q4_K without importance weights."""
    fits = Fits(m, 32, 15, round_then_limit)
    _search_by_magnitude(m, block, fits, SearchRange(15, -1.0, 0.1, 20))
    put_nibbles(m, block, 16, fits.levels)


def quantize_q5_k(m: Machine, block: Block) -> None:
    """Q5_K without importance weights."""
    fits = Fits(m, 32, 31, round_then_limit)
    _search_by_magnitude(m, block, fits, SearchRange(31, -0.5, 0.1, 15))
    put_bit_planes(m, block, 16, fits.levels, 4)
    put_nibbles(m, block, 48, fits.levels)


def _search_by_magnitude(m: Machine, block: Block, fits: Fits, search: SearchRange) -> None:
    """Elements weigh by their own and the sub-block's magnitude."""
    weights = m.floats(32)

    def fit(j: Index, max_scale: Float, max_minimum: Float) -> tuple[Float, Float]:
        x = block.x.part(j * 32)
        average = (sum_of_squares(m, x, 32) / 32).sqrt()

        def weigh(i: Index) -> None:
            weights[i] = average + abs(x[i])

        m.fold(32, weigh)
        fitted = fits.keep(j, fit_affine(m, Elements(x, weights, 32), search, squared))
        return larger(fitted, max_scale, max_minimum)

    max_scale, max_minimum = m.fold(8, fit, m.f32(0), m.f32(0))
    to_scale = select(max_scale > 0, 63.0 / max_scale, 0.0)
    to_minimum = select(max_minimum > 0, 63.0 / max_minimum, 0.0)
    scales = [limited(nearest_int(to_scale * fits.scales[j]) & 255, 0, 63) for j in range(8)]
    minima = [limited(nearest_int(to_minimum * fits.minima[j]) & 255, 0, 63) for j in range(8)]
    _put_scales(block, fits, (scales, minima), (max_scale / 63, max_minimum / 63))


def quantize_q4_k_weighted(m: Machine, block: Block) -> None:
    """Q4_K with importance weights."""
    fits = Fits(m, 32, 15, limit_then_round)
    # unlike Q5_K, ggml does not limit the small scales to six bits here; they exceed them only if negative
    _search_by_importance(m, block, fits, top_scale=255)
    put_nibbles(m, block, 16, fits.levels)


def quantize_q5_k_weighted(m: Machine, block: Block) -> None:
    """Q5_K with importance weights."""
    fits = Fits(m, 32, 31, limit_then_round)
    _search_by_importance(m, block, fits, top_scale=63)
    put_bit_planes(m, block, 16, fits.levels, 4)
    put_nibbles(m, block, 48, fits.levels)


def _search_by_importance(m: Machine, block: Block, fits: Fits, top_scale: int) -> None:
    weights, sum_weights = m.floats(32), m.floats(8)
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256

    def fit(j: Index) -> None:
        elements = Elements(block.x.part(j * 32), weights, 32)
        sum_weights[j] = by_importance(m, block, j * 32, sigma2, elements)
        fits.keep(j, fit_affine_weighted(m, elements, SearchRange(fits.top, -0.9, 0.05, 36)))

    m.fold(8, fit)
    scales, minima = m.ints(8), m.ints(8)
    scale = fit_positive(m, Elements(fits.scales, sum_weights, 8), 63, scales)
    minimum = fit_positive(m, Elements(fits.minima, sum_weights, 8), 63, minima)
    small = tuple([limited(array[j], 0, top_scale) for j in range(8)] for array in (scales, minima))
    _put_scales(block, fits, (small[0], small[1]), (scale, minimum))


def _put_scales(block: Block, fits: Fits, small: tuple[list[Int], list[Int]], steps: tuple[Float, Float]) -> None:
    """Write both steps and the small scales and minima; compute the final levels."""
    step, step_minimum = half_bits(steps[0]), half_bits(steps[1])
    block.out.put(0, step, 2)
    block.out.put(2, step_minimum, 2)
    stored = put_six_bit(block, 4, *small)
    for j in range(8):
        scale, minimum = six_bit(stored, j)
        fits.set_steps(j, half_value(step) * scale.to_float(), half_value(step_minimum) * minimum.to_float())
    fits.final_levels(block)


def quantize_q2_k(m: Machine, block: Block) -> None:
    """Q2_K without importance weights: elements weigh by their magnitude, errors are absolute differences."""
    fits, weights = Fits(m, 16, 3, round_then_limit), m.floats(16)

    def fit(j: Index, max_scale: Float, max_minimum: Float) -> tuple[Float, Float]:
        x = block.x.part(j * 16)

        def weigh(i: Index) -> None:
            weights[i] = abs(x[i])

        m.fold(16, weigh)
        fitted = fits.keep(j, fit_affine(m, Elements(x, weights, 16), SearchRange(3, -0.5, 0.1, 15), abs))
        return larger(fitted, max_scale, max_minimum)

    max_scale, max_minimum = m.fold(16, fit, m.f32(0), m.f32(0))
    to_scale, to_minimum = 15.0 / max_scale, 15.0 / max_minimum
    small = m.ints(16)

    def join(j: Index) -> None:
        scale = select(max_scale > 0, nearest_int(to_scale * fits.scales[j]), 0)
        minimum = select(max_minimum > 0, nearest_int(to_minimum * fits.minima[j]), 0)
        small[j] = (scale | (minimum << 4)) & 255

    m.fold(16, join)
    step = select(max_scale > 0, max_scale / 15, 0.0)
    step_minimum = select(max_minimum > 0, max_minimum / 15, 0.0)
    _put_q2_k(block, fits, [small[j] for j in range(16)], (step, step_minimum))


def quantize_q2_k_weighted(m: Machine, block: Block) -> None:
    """Q2_K with importance weights."""
    fits, weights, sum_weights = Fits(m, 16, 3, limit_then_round), m.floats(16), m.floats(16)
    sigma2 = sum_of_squares(m, block.x, 256) / 256

    def fit(j: Index) -> None:
        elements = Elements(block.x.part(j * 16), weights, 16)
        sum_weights[j] = by_importance(m, block, j * 16, sigma2, elements)
        fits.keep(j, fit_affine_weighted(m, elements, SearchRange(3, -0.9, 0.05, 36)))

    m.fold(16, fit)
    scales, minima = m.ints(16), m.ints(16)
    step = fit_positive(m, Elements(fits.scales, sum_weights, 16), 15, scales)
    step_minimum = fit_positive(m, Elements(fits.minima, sum_weights, 16), 15, minima)
    small = [(scales[j] | (minima[j] << 4)) & 255 for j in range(16)]
    _put_q2_k(block, fits, small, (step, step_minimum))


def _put_q2_k(block: Block, fits: Fits, small: list[Int], steps: tuple[Float, Float]) -> None:
    """Write steps, small scales and minima (a nibble each), and the final levels."""
    step, step_minimum = half_bits(steps[0]), half_bits(steps[1])
    block.out.put(80, step, 2)
    block.out.put(82, step_minimum, 2)
    for j, byte in enumerate(small):
        block.out.put(j, byte, 1)
        fits.set_steps(j, half_value(step) * (byte & 15).to_float(), half_value(step_minimum) * (byte >> 4).to_float())
    fits.final_levels(block)
    put_quarters(fits.m, block, 16, fits.levels)

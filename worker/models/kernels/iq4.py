"""IQ4_NL and IQ4_XS: 16 values that are not evenly spaced, times a scale.

IQ4_NL has a scale per block of 32; IQ4_XS blocks are 256 long with a six-bit scale for each 32.
"""

from __future__ import annotations

from typing import NamedTuple

from worker.models.kernels.error_weights import by_importance, by_square, sum_of_squares
from worker.models.kernels.fit_scale import SMALLEST, Elements, largest_magnitude
from worker.models.kernels.lanes import Array, Choice, Float, Index, Int, select
from worker.models.kernels.machine import Block, Machine
from worker.models.kernels.packing import put_block_nibbles
from worker.models.kernels.rounding import half_bits, limited, nearest_int

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""``kvalues_iq4nl``."""
TRIES = 7
"""How far the search goes to either side of the scale that maps the extreme to the first value."""


def _choose(x: Float, choices: list[Choice]) -> Choice:
    """The choice that stands for the value nearest to ``x``; for NaN the last.

    ggml compares distances to the neighbours below and above. Near the middle of two values these are exact, so it
    is the same to compare with the middle.
    """
    chosen = choices[-1]
    for k in range(len(VALUES) - 2, -1, -1):
        chosen = select(x < (VALUES[k] + VALUES[k + 1]) / 2, choices[k], chosen)
    return chosen


def nearest_value(m: Machine, x: Float) -> Float:
    """The nearest of :data:`VALUES`."""
    return _choose(x, [m.f32(value) for value in VALUES])


def nearest_index(m: Machine, x: Float) -> Int:
    """Index of the nearest of :data:`VALUES`: ``best_index_int8``."""
    return _choose(x, [m.i32(index) for index in range(len(VALUES))])


class _Sums(NamedTuple):
    qx: Float
    q2: Float


def _fit(m: Machine, elements: Elements) -> Float:
    """The scale of 32 elements with the least weighted squared error among those tried."""
    x, w, length = elements
    extreme = largest_magnitude(m, x, length)

    def sums(inverse: Float) -> _Sums:
        def add(i: Index, qx: Float, q2: Float) -> _Sums:
            value = nearest_value(m, inverse * x[i])
            weighted = w[i] * value
            return _Sums(qx + weighted * x[i], q2 + weighted * value)

        return _Sums(*m.fold(length, add, m.f32(0), m.f32(0), unroll=2))

    first = sums(1.0 / (-extreme / VALUES[0]))
    scale = select(first.q2 > 0, first.qx / first.q2, 0.0)
    numerators = m.constants([float(step + VALUES[0]) for step in range(-TRIES, TRIES + 1)])

    def attempt(step: Index, best: Float, scale: Float) -> tuple[Float, Float]:
        qx, q2 = sums(numerators[step] / extreme)
        better = (q2 > 0) & (qx * qx > best * q2)
        return select(better, qx / q2 * qx, best), select(better, qx / q2, scale)

    _, scale = m.fold(2 * TRIES + 1, attempt, scale * first.qx, scale)
    fitted: Float = select(abs(extreme) < SMALLEST, m.f32(0), scale)
    return fitted


def _put_indices(m: Machine, target: Array[Int], x: Array[Float], inverse: Float) -> None:
    def put_index(i: Index) -> None:
        target[i] = nearest_index(m, inverse * x[i])

    m.fold(32, put_index, unroll=2)


def quantize_iq4_nl(m: Machine, block: Block) -> None:
    """IQ4_NL without importance weights: elements weigh by their square."""
    elements = Elements(block.x, m.floats(32), 32)
    by_square(m, elements)
    _finish_iq4_nl(m, block, _fit(m, elements))


def quantize_iq4_nl_weighted(m: Machine, block: Block) -> None:
    """IQ4_NL with importance weights."""
    elements = Elements(block.x, m.floats(32), 32)
    by_importance(m, block, 0, sum_of_squares(m, block.x, 32) * (2 / 32), elements)
    _finish_iq4_nl(m, block, _fit(m, elements))


def _finish_iq4_nl(m: Machine, block: Block, scale: Float) -> None:
    block.out.put(0, half_bits(scale), 2)
    indices = m.ints(32)
    _put_indices(m, indices, block.x, select(scale != 0, 1.0 / scale, 0.0))
    put_block_nibbles(m, block, 2, indices)


def quantize_iq4_xs(m: Machine, block: Block) -> None:
    """IQ4_XS without importance weights: elements weigh by their square."""
    weights = m.floats(32)

    def fit(j: Index) -> Float:
        elements = Elements(block.x.part(j * 32), weights, 32)
        by_square(m, elements)
        return _fit(m, elements)

    scales = m.floats(8)
    _finish_iq4_xs(m, block, scales, m.fold(8, lambda j, *s: _keep(scales, j, fit(j), *s), m.f32(0), m.f32(0))[1])


def quantize_iq4_xs_weighted(m: Machine, block: Block) -> None:
    """IQ4_XS with importance weights."""
    weights = m.floats(32)
    sigma2 = sum_of_squares(m, block.x, 256) * (2 / 256)

    def fit(j: Index) -> Float:
        elements = Elements(block.x.part(j * 32), weights, 32)
        by_importance(m, block, j * 32, sigma2, elements)
        return _fit(m, elements)

    scales = m.floats(8)
    _finish_iq4_xs(m, block, scales, m.fold(8, lambda j, *s: _keep(scales, j, fit(j), *s), m.f32(0), m.f32(0))[1])


def _keep(scales: Array[Float], j: Index, scale: Float, magnitude: Float, largest: Float) -> tuple[Float, Float]:
    """Store a scale; the largest magnitude so far, and the scale that has it."""
    scales[j] = scale
    better = abs(scale) > magnitude
    return select(better, abs(scale), magnitude), select(better, scale, largest)


def _finish_iq4_xs(m: Machine, block: Block, scales: Array[Float], largest: Float) -> None:
    """Write step, scales (six bits, with 32 added: four here and two there) and indices."""
    step = -largest / 32
    block.out.put(0, half_bits(step), 2)
    inverse = select(step != 0, 1.0 / step, 0.0)
    indices, small = m.ints(256), []
    for j in range(8):
        scale = limited(nearest_int(inverse * scales[j]), -32, 31)
        factor = step * scale.to_float()
        _put_indices(m, indices.part(j * 32), block.x.part(j * 32), select(factor != 0, 1.0 / factor, 0.0))
        small.append(scale + 32)
    upper = m.i32(0)
    for j in range(8):
        upper = upper | ((small[j] >> 4) << (2 * j))
    block.out.put(2, upper, 2)
    for j in range(4):
        block.out.put(4 + j, (small[2 * j] & 15) | ((small[2 * j + 1] & 15) << 4), 1)
    m.fold(8, lambda j: put_block_nibbles(m, block, j * 16 + 8, indices.part(j * 32)))

"""IQ2_XXS, IQ2_XS and IQ2_S: points of eight elements with three levels, a scale per 32 or 16 elements."""

from __future__ import annotations

from collections.abc import Callable

from worker.models.kernels.error_weights import by_importance, sum_of_squares
from worker.models.kernels.fit_scale import SMALLEST, Elements, fit_positive
from worker.models.kernels.grid_search import GridShape, Search, put_scale_nibbles, put_step, search_around, small_scale
from worker.models.kernels.lanes import Float, Index, select
from worker.models.kernels.machine import Block, Machine

XXS = GridShape(32, 8, 3, SMALLEST, 6, 0.1, even_signs=True)
XS = GridShape(16, 8, 3, SMALLEST, 9, 0.1, even_signs=True)
S = GridShape(16, 8, 3, 1e-8, 9, 0.1, even_signs=False)


def quantize_iq2_xxs(m: Machine, block: Block) -> None:
    """IQ2_XXS, which needs importance weights. A first scale comes from a fit without a grid."""
    search = Search(m, block, XXS)
    sigma2 = sum_of_squares(m, block.x, 256) / 256
    scales, words, levels = m.floats(8), m.ints(16), m.ints(32)

    def sub_block(j: Index, largest_scale: Float) -> Float:
        largest = search.load(j * 32, lambda e: by_importance(m, block, j * 32, sigma2, e))
        first = fit_positive(m, Elements(search.part.x, search.part.weight, 32), 4, levels)
        reach = first * 3.0
        scale = search.attempts(reach, first, on_grid=True)
        scale = search.place_again(scale, only_off_grid=False, if_off_grid=False)
        placed = search.positive(scale, (largest < SMALLEST) | (reach <= 0))
        scales[j] = placed.scale
        low, high = m.i32(0), m.i32(0)
        for k in range(4):
            low = low | (search.index(k) << (8 * k))
            high = high | (search.part.signs[k] << (7 * k))
        words[j * 2], words[j * 2 + 1] = low, high
        return select(largest_scale > placed.scale, largest_scale, placed.scale)

    largest = m.fold(8, sub_block, m.f32(0))
    used, inverse = put_step(block, largest, 1)

    def put(j: Index) -> None:
        high = words[j * 2 + 1] | (small_scale(scales[j], inverse) << 28)
        block.out.put(j * 8 + 2, select(used, words[j * 2], 0), 4)
        block.out.put(j * 8 + 6, select(used, high, 0), 4)

    m.fold(8, put)


def quantize_iq2_xs(m: Machine, block: Block) -> None:
    """IQ2_XS, which needs importance weights."""
    search = Search(m, block, XS)
    sigma2 = sum_of_squares(m, block.x, 256) / 256
    scales, words = m.floats(16), m.ints(16)

    def sub_block(j: Index, largest_scale: Float) -> Float:
        placed = search_around(search, j, lambda e: by_importance(m, block, j * 16, sigma2, e))
        scales[j] = placed.scale
        first, second = (search.index(k) | (search.part.signs[k] << 9) for k in range(2))
        words[j] = first | (second << 16)
        return select(largest_scale > placed.scale, largest_scale, placed.scale)

    largest = m.fold(16, sub_block, m.f32(0))
    used, inverse = put_step(block, largest, 1)
    m.fold(16, lambda j: block.out.put(j * 4 + 2, select(used, words[j], 0), 4))
    put_scale_nibbles(m, block, 66, scales, count=8, step=(used, inverse))


def quantize_iq2_s(m: Machine, block: Block) -> None:
    """IQ2_S without importance weights: elements weigh by their and the block's mean square."""
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256

    def weigh(_: Index, elements: Elements) -> None:
        def one(i: Index) -> None:
            elements.w[i] = 0.25 * sigma2 + elements.x[i] * elements.x[i]

        m.fold(16, one)

    _quantize_iq2_s(m, block, weigh)


def quantize_iq2_s_weighted(m: Machine, block: Block) -> None:
    """IQ2_S with importance weights."""
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256
    _quantize_iq2_s(m, block, lambda j, e: by_importance(m, block, j * 16, sigma2, e))


def _quantize_iq2_s(m: Machine, block: Block, weigh: Callable[[Index, Elements], object]) -> None:
    search = Search(m, block, S)
    scales, upper = m.floats(16), m.ints(16)

    def sub_block(j: Index, largest_scale: Float) -> Float:
        placed = search_around(search, j, lambda e: weigh(j, e))
        scales[j] = placed.scale
        first, second = search.index(0), search.index(1)
        block.out.put(j * 2 + 2, (first & 255) | ((second & 255) << 8), 2)
        block.out.put(j * 2 + 34, search.part.signs[0] | (search.part.signs[1] << 8), 2)
        upper[j] = (first >> 8) | ((second >> 8) << 2)
        return select(largest_scale > placed.scale, largest_scale, placed.scale)

    largest = m.fold(16, sub_block, m.f32(0))
    used, inverse = put_step(block, largest, 0.9875)
    m.fold(8, lambda j: block.out.put(j + 66, upper[j * 2] | (upper[j * 2 + 1] << 4), 1))
    put_scale_nibbles(m, block, 74, scales, count=8, step=(used, inverse))

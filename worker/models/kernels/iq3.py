"""IQ3_XXS and IQ3_S: points of four elements with eight levels, a scale per 32 elements."""

from __future__ import annotations

from collections.abc import Callable

from worker.models.kernels.error_weights import by_importance, by_square, sum_of_squares
from worker.models.kernels.fit_scale import Elements
from worker.models.kernels.grid_search import GridShape, Search, put_scale_nibbles, put_step, search_around, small_scale
from worker.models.kernels.lanes import Float, Index, Int, select
from worker.models.kernels.machine import Block, Machine

XXS = GridShape(32, 4, 8, 1e-8, 15, 0.2, even_signs=True)
S = GridShape(32, 4, 8, 0.0, 9, 0.2, even_signs=False)


def quantize_iq3_xxs(m: Machine, block: Block) -> None:
    """IQ3_XXS without importance weights: elements weigh by their square."""
    _quantize_iq3_xxs(m, block, lambda _, e: by_square(m, e))


def quantize_iq3_xxs_weighted(m: Machine, block: Block) -> None:
    """IQ3_XXS with importance weights."""
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256
    _quantize_iq3_xxs(m, block, lambda j, e: by_importance(m, block, j * 32, sigma2, e))


def _quantize_iq3_xxs(m: Machine, block: Block, weigh: Callable[[Index, Elements], object]) -> None:
    search = Search(m, block, XXS)
    scales, words, signs = m.floats(8), m.ints(16), m.ints(8)

    def sub_block(j: Index, largest_scale: Float) -> Float:
        placed = search_around(search, j, lambda e: weigh(j, e))
        scales[j] = placed.scale
        for half in range(2):
            a, b, c, d = (search.index(half * 4 + k) << (8 * k) for k in range(4))
            words[j * 2 + half] = a | b | c | d
        a, b, c, d = (search.part.signs[k] << (7 * k) for k in range(4))
        signs[j] = a | b | c | d
        return select(largest_scale > placed.scale, largest_scale, placed.scale)

    largest = m.fold(8, sub_block, m.f32(0))
    used, inverse = put_step(block, largest, 1.0125)
    m.fold(16, lambda j: block.out.put(j * 4 + 2, select(used, words[j], 0), 4))

    def put_signs(j: Index) -> None:
        block.out.put(j * 4 + 66, select(used, signs[j] | (small_scale(scales[j], inverse) << 28), 0), 4)

    m.fold(8, put_signs)


def quantize_iq3_s(m: Machine, block: Block) -> None:
    """IQ3_S without importance weights: elements weigh by their square."""
    _quantize_iq3_s(m, block, lambda _, e: by_square(m, e))


def quantize_iq3_s_weighted(m: Machine, block: Block) -> None:
    """IQ3_S with importance weights."""
    sigma2 = 2.0 * sum_of_squares(m, block.x, 256) / 256
    _quantize_iq3_s(m, block, lambda j, e: by_importance(m, block, j * 32, sigma2, e))


def _quantize_iq3_s(m: Machine, block: Block, weigh: Callable[[Index, Elements], object]) -> None:
    """Search and write.

    ggml does not leave room for a sub-block of zeros: points and signs of those after it move up, while the upper
    bits of the points and the scales stay in place. Readers do not know of that, but the bytes are ggml's.
    """
    search = Search(m, block, S)
    scales, low_bits, signs = m.floats(8), m.ints(16), m.ints(8)

    def clear(j: Index) -> None:
        low_bits[j * 2] = low_bits[j * 2 + 1] = signs[j] = m.i32(0)

    def sub_block(j: Index, largest_scale: Float, slot: Int) -> tuple[Float, Int]:
        largest = search.load(j * 32, lambda e: weigh(j, e))
        scale = search.attempts(largest, largest / 15, on_grid=False)
        scale = search.place_again(scale, only_off_grid=False, if_off_grid=True)
        placed = search.positive(scale, largest == 0)
        scales[j] = placed.scale
        upper = m.i32(0)
        for half in range(2):
            low = m.i32(0)
            for k in range(4):
                index = search.index(half * 4 + k)
                low = low | ((index & 255) << (8 * k))
                upper = upper | ((index >> 8) << (half * 4 + k))
            low_bits.scatter(slot + slot + half, low)
        block.out.put(j + 66, upper, 1)
        a, b, c, d = (search.part.signs[k] << (8 * k) for k in range(4))
        signs.scatter(slot, a | b | c | d)
        following = slot + select(placed.zero, m.i32(0), 1)
        return select(largest_scale > placed.scale, largest_scale, placed.scale), following

    m.fold(8, clear)
    largest, _ = m.fold(8, sub_block, m.f32(0), m.i32(0))
    m.fold(16, lambda j: block.out.put(j * 4 + 2, low_bits[j], 4))
    m.fold(8, lambda j: block.out.put(j * 4 + 74, signs[j], 4))
    used, inverse = put_step(block, largest, 1.033)
    put_scale_nibbles(m, block, 106, scales, count=4, step=(used, inverse))

"""How much the error of each element counts while a scale is searched."""

from __future__ import annotations

from worker.models.kernels.fit_scale import Elements
from worker.models.kernels.lanes import Array, Float, Index
from worker.models.kernels.machine import Block, Machine


def sum_of_squares(m: Machine, x: Array[Float], length: int) -> Float:
    """Sum of squares in element order."""
    total: Float = m.fold(length, lambda i, total: total + x[i] * x[i], m.f32(0), unroll=4)
    return total


def by_importance(m: Machine, block: Block, start: Index, sigma2: Float, elements: Elements) -> Float:
    """Weigh a sub-block by importance times a blend of its surroundings' (``sigma2``) and its own magnitude.

    Fills ``elements.w`` for the elements from ``start`` of the block on, and returns the sum.
    """
    x, importance = elements.x, block.importance.part(start)

    def weigh(i: Index, total: Float) -> Float:
        weight = importance[i] * (sigma2 + x[i] * x[i]).sqrt()
        elements.w[i] = weight
        return total + weight

    total: Float = m.fold(elements.length, weigh, m.f32(0))
    return total


def by_square(m: Machine, elements: Elements) -> None:
    """Weigh every element by its own square."""

    def weigh(i: Index) -> None:
        elements.w[i] = elements.x[i] * elements.x[i]

    m.fold(elements.length, weigh)

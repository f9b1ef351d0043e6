"""Lookup tables of the types that store points of a fixed grid (IQ1, IQ2, IQ3) instead of single values.

A group of eight (IQ1, IQ2) or four (IQ3) elements is rounded to levels. If that combination of levels is a grid
point, its index is stored; otherwise the best of its nearest points is. The grids come from the ``gguf`` package, the
nearest points are computed here as ggml does at start-up: all points at the ``k`` smallest distances, ordered by
distance and then by index, with ``k`` given per type.

Combinations are numbered in base 3 (or 8), not in bits: the table of the IQ1 and IQ2 types then has 6561 entries and
stays in the first-level cache.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType


class Grid(NamedTuple):
    """One type's grid and the way from level combinations to its points."""

    levels: NDArray[np.uint8]
    """``(n_points, group)``: level of each element, 0..2 for IQ1 and IQ2, 0..7 for IQ3."""
    codes: NDArray[np.int32]
    """``(n_levels ** group,)``: the point of a combination, or ``-1 - start`` of its list in ``neighbours``."""
    neighbours: NDArray[np.uint16]
    """Lists of points, each preceded by its length."""

    def near(self, code: int) -> NDArray[np.uint16]:
        """The near points that a negative entry of ``codes`` stands for."""
        start = -1 - code
        return self.neighbours[start + 1 : start + 1 + int(self.neighbours[start])]


class GridRule(NamedTuple):
    """How a type's table is made."""

    n_levels: int
    group: int
    n_distances: int
    """How many distinct smallest distances count as near."""


_T = GGMLType
RULES: dict[GGMLType, GridRule] = {
    _T.IQ1_S: GridRule(3, 8, 3),
    _T.IQ2_XXS: GridRule(3, 8, 2),
    _T.IQ2_XS: GridRule(3, 8, 2),
    _T.IQ2_S: GridRule(3, 8, 1),
    _T.IQ3_XXS: GridRule(8, 4, 2),
    _T.IQ3_S: GridRule(8, 4, 3),
}


@cache
def grid_of(ggml_type: GGMLType) -> Grid:
    """Grid of a type (IQ1_M shares that of IQ1_S). Built in some 50 ms on first use, then kept."""
    key = _T.IQ1_S if ggml_type is _T.IQ1_M else ggml_type
    rule = RULES[key]
    levels = _levels(key)
    powers = (rule.n_levels ** np.arange(rule.group)).astype(np.int32)
    codes = np.full(rule.n_levels**rule.group, -1, np.int32)
    codes[levels @ powers] = np.arange(len(levels), dtype=np.int32)
    missing = np.flatnonzero(codes < 0)
    lists = [
        part for start in range(0, missing.size, 512) for part in _nearest(missing[start : start + 512], levels, rule)
    ]
    lengths = np.array([len(part) for part in lists])
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    codes[missing] = -1 - starts
    return Grid(levels, codes, np.concatenate(lists).astype(np.uint16))


GRID_TYPES = frozenset(RULES) | {_T.IQ1_M}
LIST_PADDING = 16


@cache
def search_table(ggml_type: GGMLType) -> NDArray[np.int32]:
    """A type's grid as compiled kernels read it: first an entry per combination, then the lists.

    A point is stored as ``index << 16 | levels``, with two bits a level (three for IQ3), the first element's lowest.
    The entry of a combination is its point, or ``-position`` of its list; a list is its length and then its points,
    with the last one repeated until their number is a multiple of :data:`LIST_PADDING`.
    """
    grid, rule = grid_of(ggml_type), RULES[_T.IQ1_S if ggml_type is _T.IQ1_M else ggml_type]
    bits = 2 if rule.n_levels == 3 else 3
    levels = (grid.levels.astype(np.int32) << (bits * np.arange(rule.group))).sum(1)
    points = (np.arange(len(levels)) << 16 | levels).astype(np.int32)
    entries, parts, end = points[np.maximum(grid.codes, 0)], [], len(grid.codes)
    for combination in np.flatnonzero(grid.codes < 0):
        near = points[grid.near(int(grid.codes[combination]))]
        padding = np.repeat(near[-1:], -near.size % LIST_PADDING)
        parts.append(np.concatenate(([near.size], near, padding)))
        entries[combination] = -end
        end += parts[-1].size
    return np.concatenate((entries, *parts)).astype(np.int32)


def _levels(ggml_type: GGMLType) -> NDArray[np.uint8]:
    """Grid points as levels, in index order: the values of ``gguf``'s decoding grid, numbered by size."""
    from gguf import quants

    decoder = getattr(quants, ggml_type.name)
    decoder.init_grid()
    points: NDArray[np.float32] = decoder.grid.reshape(-1, RULES[ggml_type].group)
    return np.searchsorted(np.unique(points), points).astype(np.uint8)


def _nearest(codes: NDArray[np.intp], levels: NDArray[np.uint8], rule: GridRule) -> list[NDArray[np.int64]]:
    """For each combination its list of near points, preceded by the length."""
    powers = rule.n_levels ** np.arange(rule.group)
    wanted = (codes[:, None] // powers % rule.n_levels).astype(np.float32)
    points = levels.astype(np.float32)
    # squared distances of small integers are exact in float32
    distance = (wanted**2).sum(1)[:, None] + (points**2).sum(1)[None, :] - 2 * wanted @ points.T
    limit = distance.min(1, keepdims=True)
    for _ in range(rule.n_distances - 1):
        limit = np.where(distance > limit, distance, np.inf).min(1, keepdims=True)
    row, point = np.nonzero(distance <= limit)
    order = np.lexsort((point, distance[row, point], row))
    parts = np.split(point[order], np.flatnonzero(np.diff(row)) + 1)
    return [np.concatenate(([part.size], part)) for part in parts]

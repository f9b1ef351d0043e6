"""What kernels run on, and what they are given. See ``lanes`` for the values they compute with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from worker.models.kernels.lanes import Array, Float, Index, Int, LaneArithmetic, Mask, Scratch, Table, select


class _ListSearch(NamedTuple):
    """Loop state of :meth:`Machine.nearest_point`."""

    position: Int
    """Where the next point of the list stands in the table."""
    left: Int
    """Points that were not looked at."""
    error: Float
    """The least error so far."""
    nearest: Int
    """The point that has it."""


class Machine(LaneArithmetic):
    """What a kernel runs on: arithmetic, memory and loops."""

    @abstractmethod
    def floats(self, length: int) -> Scratch[Float]:
        """Scratch space for ``length`` floats per lane."""

    @abstractmethod
    def ints(self, length: int) -> Scratch[Int]:
        """Scratch space for ``length`` integers per lane."""

    @abstractmethod
    def constants(self, values: Sequence[float | np.float32]) -> Array[Float]:
        """Read-only floats, the same in every lane."""

    @abstractmethod
    def fold(
        self,
        count: Index,
        body: Callable[..., Any],
        *start: Any,
        unroll: int = 1,
        again: Callable[..., Mask] | None = None,
    ) -> Any:
        """Run ``state = body(position, *state)`` for positions 0 .. count - 1 and return the last state.

        The state is one value or a tuple of values, as in ``start``; with no state, the body is run for what it
        stores. With ``again``, the loop ends early once ``again(*state)`` holds in no lane; until then all lanes run,
        so a lane that is done must not change any more. ``count`` is at least 1, and ``unroll`` divides it.
        """

    @abstractmethod
    def counter(self, position: Index) -> Int:
        """A position as a number that kernels can compute with."""

    def nearest_point(self, table: Table, entry: Int, errors: list[list[Float]]) -> Int:
        """The entry itself if it is a point (not negative), else the point of its list with the least error.

        Of equals the first in the list is taken. ``errors`` has, for each element of a point, the error at each of its
        levels. See :func:`worker.models.kernels.grids.search_table` for entries and lists.
        """
        bits = 2 if len(errors[0]) == 3 else 3
        searching = entry < 0
        start = select(searching, self.i32(0) - entry, 0)
        count = select(searching, table[start], 0)

        def consider(_: Index, *state: Any) -> _ListSearch:
            position, left, best, nearest = _ListSearch(*state)
            point = table[position]
            error = self.f32(0)
            for element, by_level in enumerate(errors):
                error = error + _picked(by_level, (point >> (bits * element)) & ((1 << bits) - 1))
            better = (left > 0) & (error < best)
            return _ListSearch(
                position=select(left > 1, position + 1, start),
                left=left - 1,
                error=select(better, error, best),
                nearest=select(better, point, nearest),
            )

        first = select(searching, table[start + 1], entry)
        before = _ListSearch(start + 1, count, self.f32(LARGEST_FLOAT), first)
        after = self.fold(LONGEST_LIST, consider, *before, again=lambda *state: _ListSearch(*state).left > 0)
        return _ListSearch(*after).nearest


LARGEST_FLOAT = 3.4028234663852886e38
LONGEST_LIST = 4096
"""More than any list of near points has."""


def _picked(by_level: list[Float], level: Int) -> Float:
    chosen = by_level[0]
    for number, value in enumerate(by_level[1:], start=1):
        chosen = select(level == number, value, chosen)
    return chosen


class OutputBytes(ABC):
    """Where a kernel writes the bytes of its block."""

    @abstractmethod
    def put(self, offset: Index, value: Int, size_bytes: int) -> None:
        """Store the low 1, 2 or 4 bytes of ``value`` at a byte offset, little-endian."""


class Block:
    """What a kernel is given: one block's numbers and the place for its bytes."""

    def __init__(self, x: Array[Float], out: OutputBytes, extras: Extras) -> None:
        self.x = x
        self.out = out
        self._extras = extras

    @property
    def importance(self) -> Array[Float]:
        """Importance of each element; only in kernels that are declared with weights."""
        assert self._extras.weights is not None
        return self._extras.weights

    @property
    def row_mean(self) -> Float:
        """Mean square of the block's row; only in kernels that are declared to want it."""
        assert self._extras.row_mean is not None
        return self._extras.row_mean

    @property
    def table(self) -> Table:
        """Lookup table; only in kernels that are declared with one."""
        assert self._extras.table is not None
        return self._extras.table


class Extras(NamedTuple):
    """What some kernels need besides the numbers."""

    weights: Array[Float] | None = None
    row_mean: Float | None = None
    table: Table | None = None

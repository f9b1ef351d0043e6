"""A low-rank update whose input axis is cut into several, as upstream does to put columns into another order.

Qwen3.5's ``out_proj`` and PLaMo's ``attn_output`` go this way: reshape to (o, heads, groups, d), swap two of the new
axes, reshape back. Qwen3-Next's ``in_proj_qkvz`` is transposed first, cut, taken apart and joined again. What happens
to the columns happens to ``A`` alone; the rows must stay where they are meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class SplitColumns:
    """``W = B @ A`` seen as (e.., o, i1, i2, ..).

    Args:
        a: (e.., r, i1, i2, ..).
        b: (e.., o, r).
        join: Makes the update whose columns are whole again, of its ``a`` and ``b``.
    """

    def __init__(self, a: Tensor, b: Tensor, join: Callable[[Tensor, Tensor], Any]) -> None:
        self.a = a
        self.b = b
        self._join = join

    @property
    def _kept(self) -> int:
        """How many axes come before the columns'."""
        return self.b.ndim - 1

    @property
    def shape(self) -> torch.Size:
        """(e.., o, i1, i2, ..)."""
        return torch.Size((*self.b.shape[:-1], *self.a.shape[self._kept :]))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def contiguous(self) -> SplitColumns:
        """Both factors contiguous."""
        return SplitColumns(self.a.contiguous(), self.b.contiguous(), self._join)

    def reshape(self, *shape: Any) -> Any:
        """Join the columns again, or cut them otherwise."""
        wanted = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        if -1 in wanted:
            known = math.prod(extent for extent in wanted if extent != -1)
            wanted[wanted.index(-1)] = math.prod(self.shape) // known
        kept = self._kept
        if wanted[:kept] != list(self.shape[:kept]) or len(wanted) == kept:
            raise NotImplementedError("a reshape that mixes rows and columns")
        a = self.a.reshape(*self.a.shape[:kept], *wanted[kept:])
        return self._join(a, self.b) if len(wanted) == kept + 1 else SplitColumns(a, self.b, self._join)

    view = reshape

    def permute(self, *dims: Any) -> SplitColumns:
        """Reorder the columns' axes among themselves."""
        order = [axis % self.ndim for axis in (dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)]
        if order[: self._kept] != list(range(self._kept)):
            raise NotImplementedError("a permutation that moves rows among columns")
        return SplitColumns(self.a.permute(*order), self.b, self._join)

    def transpose(self, dim0: int, dim1: int) -> SplitColumns:
        """Swap two axes."""
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(*order)

    swapaxes = transpose

    def split(self, size: int | Sequence[int], dim: int = 0) -> tuple[SplitColumns, ...]:
        """Parts along an axis of the columns."""
        axis = dim % self.ndim
        if axis < self._kept:
            raise NotImplementedError("a split of rows whose columns are cut")
        sizes = size if isinstance(size, int) else list(size)
        return tuple(SplitColumns(part, self.b, self._join) for part in torch.split(self.a, sizes, axis))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        method = getattr(cls, func.__name__, None)
        if method is None:
            raise NotImplementedError(f"torch.{func.__name__}")
        return method(*args, **(kwargs or {}))

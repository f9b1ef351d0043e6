"""A low-rank update in place of a weight, for code that was written for weights.

Upstream's ``modify_tensors`` permutes, cuts, stacks and joins weights on their way to GGUF. A :class:`LowRank` stands
for ``W = B @ A`` without being multiplied out, and answers those operations by doing the same to ``A`` or ``B``: what
happens to rows happens to ``B``, what happens to columns happens to ``A``, what happens to experts happens to both.
Axes: ``e`` any number of leading ones (experts, heads), ``o`` out, ``i`` in, ``r`` rank.

The strength of an update in llama.cpp is ``alpha / rank of the tensor``, so joining updates of different rank must
not change what each is worth: ``B`` is scaled by the quotient of the ranks wherever a rank grows. Anything that is
not linear, or mixes rows and columns, raises ``NotImplementedError``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from worker.models.convert.split_columns import SplitColumns


class LowRank:
    """``W = B @ A``.

    Args:
        a: (e.., r, i); a leading axis may be 1 where ``b``'s is longer, as in broadcasting.
        b: (e.., o, r).
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        if a.ndim != b.ndim or a.shape[-2] != b.shape[-1]:
            raise ValueError(f"A {tuple(a.shape)} and B {tuple(b.shape)} do not make a product")
        self.a = a
        self.b = b

    # what a tensor tells of itself

    @property
    def rank(self) -> int:
        """``r``."""
        return int(self.b.shape[-1])

    @property
    def shape(self) -> torch.Size:
        """(e.., o, i)."""
        return torch.Size((*self.b.shape[:-1], self.a.shape[-1]))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.b.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the factors."""
        return self.b.dtype

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """Shape, or one extent of it."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Elements of ``W``."""
        return math.prod(self.shape)

    # what leaves the product as it is

    def to(self, *args: Any, **kwargs: Any) -> LowRank:
        """Both factors in another type."""
        return LowRank(self.a.to(*args, **kwargs), self.b.to(*args, **kwargs))

    def float(self) -> LowRank:
        """Both factors in float32."""
        return self.to(torch.float32)

    def contiguous(self) -> LowRank:
        """Both factors contiguous."""
        return LowRank(self.a.contiguous(), self.b.contiguous())

    clone = contiguous

    # shape

    def reshape(self, *shape: Any) -> Any:
        """Cut or join rows, or cut columns (which gives a ``SplitColumns``), not both."""
        wanted = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        if -1 in wanted:
            known = math.prod(extent for extent in wanted if extent != -1)
            wanted[wanted.index(-1)] = self.numel() // known
        if (
            len(wanted) > self.ndim
            and wanted[-1] != self.shape[-1]
            and wanted[: self.ndim - 1] == list(self.shape[:-1])
        ):
            return SplitColumns(self.a.reshape(*self.a.shape[:-1], *wanted[self.ndim - 1 :]), self.b, LowRank)
        if len(wanted) < 2 or wanted[-1] != self.shape[-1]:
            raise NotImplementedError("a reshape that joins or cuts the input axis")
        kept = self._leading_kept(wanted)
        extra = len(wanted) - 2 - kept
        a = self.a.reshape(*self.a.shape[:kept], *(1,) * extra, self.rank, wanted[-1])
        return LowRank(a, self.b.reshape(*wanted[:-1], self.rank))

    view = reshape

    def reshape_as(self, other: Any) -> Any:
        """Reshape to another tensor's shape."""
        return self.reshape(*other.shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """Join neighbouring axes."""
        start, end = start_dim % self.ndim, end_dim % self.ndim
        return self.reshape(*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :])

    def unsqueeze(self, dim: int) -> LowRank:
        """A new axis of extent 1, before the last two."""
        position = dim % (self.ndim + 1)
        if position > self.ndim - 2:
            raise NotImplementedError("a new axis among rows and columns")
        return LowRank(self.a.unsqueeze(position), self.b.unsqueeze(position))

    def squeeze(self, dim: int | None = None) -> LowRank:
        """Drop leading axes of extent 1."""
        axes = range(self.ndim) if dim is None else [dim % self.ndim]
        result = self
        for axis in reversed([axis for axis in axes if self.shape[axis] == 1]):
            if axis >= self.ndim - 2:
                raise NotImplementedError("a product without rows or columns")
            result = LowRank(result.a.squeeze(axis), result.b.squeeze(axis))
        return result

    def permute(self, *dims: Any) -> LowRank:
        """Reorder axes: the rows' among themselves, and rows with columns."""
        order = [axis % self.ndim for axis in (dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)]
        last = self.ndim - 1
        if order[-1] == last:
            if all(extent == 1 for extent in self.a.shape[:-2]):
                return LowRank(self.a, self.b.permute(*order))
            if order[-2] == last - 1:
                return LowRank(self.a.permute(*order), self.b.permute(*order))
        elif order[-2:] == [last, last - 1]:
            swapped = LowRank(self.b.transpose(-1, -2), self.full_a().transpose(-1, -2))
            return swapped.permute(*order[:-2], last - 1, last)
        raise NotImplementedError("a permutation that moves only rows or only columns between experts")

    def transpose(self, dim0: int, dim1: int) -> LowRank:
        """Swap two axes."""
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(*order)

    swapaxes = transpose

    def t(self) -> LowRank:
        """Rows and columns swapped."""
        return self.transpose(-1, -2)

    @property
    def T(self) -> LowRank:  # noqa: N802  torch's name
        """Rows and columns swapped."""
        return self.t()

    # parts

    def __getitem__(self, index: Any) -> LowRank:
        items = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items[at : at + 1] = [slice(None)] * (self.ndim - len(items) + 1)
        items += [slice(None)] * (self.ndim - len(items))
        if len(items) != self.ndim or any(isinstance(item, int) for item in items[-2:]) or None in items:
            raise NotImplementedError("an index that leaves no rows or no columns")
        *leading, rows, columns = items
        return LowRank(self.a[(*self._leading_of_a(leading), slice(None), columns)], self.b[(*leading, rows)])

    def __setitem__(self, index: Any, part: LowRank) -> None:
        """Rows put back that were taken out and scaled: what ``x[rows] *= 2`` does."""
        rows = index[:-1] if isinstance(index, tuple) and len(index) == self.ndim else index
        if not isinstance(part, LowRank) or not torch.equal(part.a, self.a) or part.b.shape != self.b[rows].shape:
            raise NotImplementedError("rows of another update")
        b = self.b.clone()  # the one of before may be the adapter's own
        b[rows] = part.b
        self.b = b

    def split(self, size: int | Sequence[int], dim: int = 0) -> tuple[LowRank, ...]:
        """Parts along an axis."""
        extent = self.shape[dim]
        sizes = [min(size, extent - start) for start in range(0, extent, size)] if isinstance(size, int) else list(size)
        return tuple(self._narrow(dim, sum(sizes[:number]), length) for number, length in enumerate(sizes))

    def chunk(self, chunks: int, dim: int = 0) -> tuple[LowRank, ...]:
        """Equal parts along an axis."""
        return self.split(-(-self.shape[dim] // chunks), dim)

    def __mul__(self, other: Any) -> LowRank:
        if not isinstance(other, int | float) and other.ndim and other.shape[-1] != 1:
            if other.ndim != 1:
                raise NotImplementedError("a product with a matrix, element by element")
            return LowRank(self.a * other, self.b)
        return LowRank(self.a, self.b * other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> LowRank:
        divided: LowRank = self * (1 / other)
        return divided

    # functions of the torch module

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func in (torch.stack, torch.cat, torch.concat):
            return (stacked if func is torch.stack else joined)(*args, **kwargs)
        method = getattr(cls, func.__name__, None)
        if method is None:
            raise NotImplementedError(f"torch.{func.__name__}")
        return method(*args, **kwargs)

    def with_rank(self, rank: int) -> LowRank:
        """The same update with a larger rank: zeros added, ``B`` scaled so that ``alpha / rank`` stays as strong."""
        if rank == self.rank:
            return self
        missing = rank - self.rank
        a = torch.cat([self.a, self.a.new_zeros(*self.a.shape[:-2], missing, self.a.shape[-1])], dim=-2)
        b = torch.cat([self.b * (rank / self.rank), self.b.new_zeros(*self.b.shape[:-1], missing)], dim=-1)
        return LowRank(a, b)

    def full_a(self) -> Tensor:
        """``A`` with every leading axis as long as ``B``'s."""
        return self.a.expand(*self.b.shape[:-2], *self.a.shape[-2:])

    def _leading_kept(self, wanted: Sequence[int]) -> int:
        """How many leading axes a reshape must leave alone: those in which ``a`` differs."""
        differing = [axis for axis in range(self.ndim - 2) if self.a.shape[axis] != 1]
        kept = differing[-1] + 1 if differing else 0
        if list(self.shape[:kept]) != list(wanted[:kept]):
            raise NotImplementedError("a reshape across experts")
        return kept

    def _leading_of_a(self, leading: Sequence[Any]) -> list[Any]:
        return [
            item if extent != 1 else (0 if isinstance(item, int) else slice(None))
            for item, extent in zip(leading, self.a.shape[:-2], strict=True)
        ]

    def _narrow(self, dim: int, start: int, length: int) -> LowRank:
        items = [slice(None)] * self.ndim
        items[dim % self.ndim] = slice(start, start + length)
        return self[tuple(items)]


def stacked(parts: Sequence[LowRank], dim: int = 0) -> LowRank:
    """Experts of one layer along a new leading axis; smaller ranks are brought to the largest."""
    if dim != 0:
        raise NotImplementedError("a stack along another axis than the first")
    rank = max(part.rank for part in parts)
    same = [part.with_rank(rank) for part in parts]
    return LowRank(torch.stack([part.full_a() for part in same]), torch.stack([part.b for part in same]))


def joined(parts: Sequence[LowRank], dim: int = 0) -> LowRank:
    """Updates one after the other along an axis.

    Rows: where all have the same ``A``, their ``B`` are joined; otherwise ``A`` are joined along the rank and ``B``
    become the blocks of a block-diagonal matrix. Columns: the same with the roles exchanged. Leading axes: both are
    joined.
    """
    axis = dim % parts[0].ndim
    from_end = axis - parts[0].ndim
    if from_end == -1:
        return joined([part.t() for part in parts], dim=-2).t()
    if from_end < -2:
        rank = max(part.rank for part in parts)
        same = [part.with_rank(rank) for part in parts]
        return LowRank(torch.cat([part.full_a() for part in same], axis), torch.cat([part.b for part in same], axis))
    if all(torch.equal(parts[0].a, part.a) for part in parts[1:]):
        return LowRank(parts[0].a, torch.cat([part.b for part in parts], dim=-2))
    total = sum(part.rank for part in parts)
    blocks, before = [], 0
    for part in parts:
        block = part.b.new_zeros(*part.b.shape[:-1], total)
        block[..., before : before + part.rank] = part.b * (total / part.rank)
        blocks.append(block)
        before += part.rank
    return LowRank(torch.cat([part.a for part in parts], dim=-2), torch.cat(blocks, dim=-2))

"""Where a file's weights belong in the model: the way of the conversion, gone backwards.

The converter splits, joins, permutes, transposes and renames weights, each architecture in its own way. Instead of
knowing how, every matrix of a block is replaced by two tensors of its shape that hold the number of each row and of
each column. They go through transformers' conversion back to checkpoint form and through the converter's
``modify_tensors``; what comes out under a GGUF name says which weight of which parameter lies where in the file.

The converter may also compute (``weight + 1``, ``-exp(weight)``). The numbers go through a second time, doubled: only
what is moved and not changed comes out doubled. A changed tensor has no place here, which matters only where the file
holds it in a coarser type than the model: :mod:`worker.models.evaluate.variants` refuses such a file by name.

Memory: for each matrix that is not moved as a whole, its row and column numbers as int32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from worker.models.imatrix.names import Converter, ToCheckpoint, convert_tensor

_CONVERTER_ERRORS = (ValueError, KeyError, TypeError, IndexError, RuntimeError, NotImplementedError)
"""Upstream raises whatever its code for a tensor runs into; the tensor then has no place."""
_OUTSIDE = 0  # number of what belongs to no matrix; matrices count from 1


@dataclass(frozen=True)
class Span:
    """The rows of one parameter among the rows of its block, counted from ``first``."""

    name: str
    shape: torch.Size
    first: int

    @property
    def rows(self) -> int:
        """Rows of the parameter as a matrix ``(rows, columns)``: all axes but the last one."""
        return self.shape[:-1].numel()


@dataclass(frozen=True)
class MatrixTarget:
    """Where a GGUF tensor's values go.

    Attributes:
        rows: Row numbers in the block, int64: ``(r, 1)`` where each file row is one parameter row, ``(1, c)`` where it
            is one parameter column, else ``(r, c)``.
        columns: Column numbers in the parameter, int64, shaped to broadcast against ``rows``.
        shape: ``(r, c)`` of the file's tensor as a matrix.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    shape: tuple[int, int]


@dataclass(frozen=True)
class BlockMap:
    """The matrices of a block, and where each GGUF tensor's values go among them."""

    spans: Sequence[Span]
    targets: Mapping[str, MatrixTarget]

    def place(self, name: str, values: torch.Tensor, into: Mapping[str, torch.Tensor]) -> None:
        """Write a GGUF tensor's values into the parameters.

        Args:
            name: GGUF name; one of ``targets``.
            values: Its values, float ``(r, c)``.
            into: Parameter name -> tensor of the parameter's shape, contiguous; written to.
        """
        rows, columns = self.targets[name].rows, self.targets[name].columns
        if rows.shape[0] == 1 and columns.shape[1] == 1:  # the file holds the transposed matrix
            rows, columns, values = rows.T, columns.T, values.T
        low, high = int(rows.min()), int(rows.max())
        for span in self.spans:
            last = span.first + span.rows - 1
            if high < span.first or low > last:
                continue
            matrix = into[span.name].view(span.rows, span.shape[-1])
            _write(matrix, rows - span.first, columns, values.to(matrix.dtype))

    def same_as(self, name: str) -> str | None:
        """The parameter that a GGUF tensor is as it stands, row by row; ``None`` where it is moved or part of one."""
        rows, columns = self.targets[name].rows, self.targets[name].columns
        for span in self.spans:
            if rows.shape != (span.rows, 1) or int(rows[0, 0]) != span.first:
                continue
            in_order = torch.equal(rows[:, 0], torch.arange(span.first, span.first + span.rows))
            return span.name if in_order and _counts_up(columns, span.shape[-1]) else None
        return None

    def parameters_of(self, name: str) -> list[str]:
        """Names of the parameters that a GGUF tensor holds values of."""
        rows = self.targets[name].rows
        low, high = int(rows.min()), int(rows.max())
        return [span.name for span in self.spans if span.first <= high and low < span.first + span.rows]


def _write(matrix: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> None:
    """``matrix[rows, columns] = values`` for the rows that lie in the matrix; at once where rows are whole."""
    rows, columns, values = (part.to(matrix.device) for part in (rows, columns, values))
    inside = (rows >= 0) & (rows < matrix.shape[0])
    if rows.shape[1] == 1 and _counts_up(columns, matrix.shape[1]):
        kept = inside[:, 0]
        matrix.index_copy_(0, rows[kept, 0], values if bool(kept.all()) else values[kept])
        return
    shape = (max(rows.shape[0], columns.shape[0]), max(rows.shape[1], columns.shape[1]))
    inside, rows, columns = inside.expand(shape), rows.expand(shape), columns.expand(shape)
    matrix[rows[inside], columns[inside]] = values[inside]


def _counts_up(columns: torch.Tensor, count: int) -> bool:
    return columns.shape == (1, count) and bool((columns[0] == torch.arange(count, device=columns.device)).all())


def map_block(shapes: Mapping[str, torch.Size], to_checkpoint: ToCheckpoint, converter: Converter) -> BlockMap:
    """Find out where the GGUF tensors of a block come from.

    Args:
        shapes: Parameter name -> shape, every parameter of the block (vectors complete it and are not placed).
        to_checkpoint: :meth:`worker.models.imatrix.model.Skeleton.to_checkpoint`.
        converter: An instance of upstream's converter for this model.
    """
    spans: list[Span] = []
    first = 1
    for name, shape in shapes.items():
        if len(shape) >= 2:
            spans.append(Span(name, shape, first))
            first += spans[-1].rows
    rows = _through(partial(_row_numbers, spans, shapes), to_checkpoint, converter)
    columns = _through(partial(_column_numbers, spans, shapes), to_checkpoint, converter)
    targets = {}
    for name in rows.keys() & columns.keys():
        target = _target(rows[name], columns[name], first)
        if target is not None:
            targets[name] = target
    return BlockMap(spans, targets)


def _row_numbers(spans: Iterable[Span], shapes: Mapping[str, torch.Size], factor: int) -> dict[str, torch.Tensor]:
    """Views of the parameters' shapes that hold in each place the number of its row in the block, times ``factor``."""
    numbers = _outside(shapes)
    for span in spans:
        own = torch.arange(span.first, span.first + span.rows, dtype=torch.int32) * factor
        numbers[span.name] = own.reshape(*span.shape[:-1], 1).expand(span.shape)
    return numbers


def _column_numbers(spans: Iterable[Span], shapes: Mapping[str, torch.Size], factor: int) -> dict[str, torch.Tensor]:
    """Views of the parameters' shapes that hold in each place the number of its column, from 1, times ``factor``."""
    numbers = _outside(shapes)
    for span in spans:
        own = torch.arange(1, span.shape[-1] + 1, dtype=torch.int32) * factor
        numbers[span.name] = own.reshape(*(1,) * (len(span.shape) - 1), -1).expand(span.shape)
    return numbers


def _outside(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    return {
        name: torch.full((1,) * len(shape), _OUTSIDE, dtype=torch.int32).expand(shape) for name, shape in shapes.items()
    }


def _through(
    numbers: Callable[[int], Mapping[str, torch.Tensor]], to_checkpoint: ToCheckpoint, converter: Converter
) -> dict[str, torch.Tensor]:
    """The numbers by GGUF name; tensors whose numbers were changed on the way are left out."""
    once = _converted(numbers(1), to_checkpoint, converter)
    twice = _converted(numbers(2), to_checkpoint, converter)
    return {
        name: tensor
        for name, tensor in once.items()
        if name in twice and twice[name].shape == tensor.shape and bool((twice[name] == 2 * tensor).all())
    }


def _converted(
    numbers: Mapping[str, torch.Tensor], to_checkpoint: ToCheckpoint, converter: Converter
) -> dict[str, torch.Tensor]:
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in to_checkpoint(numbers).items():
        try:
            for gguf_name, moved in convert_tensor(converter, name, tensor):
                if not moved.is_floating_point() and moved.dim() >= 2:
                    converted[gguf_name] = moved
        except _CONVERTER_ERRORS:
            continue
    return converted


def _target(rows: torch.Tensor, columns: torch.Tensor, end: int) -> MatrixTarget | None:
    """Rows and columns of a GGUF tensor; None where part of it comes from no matrix."""
    if rows.shape != columns.shape or rows.numel() == 0:
        return None
    rows, columns = _flat(rows), _flat(columns)
    if int(rows.min()) <= _OUTSIDE or int(rows.max()) >= end or int(columns.min()) <= _OUTSIDE:
        return None
    shape = (int(rows.shape[0]), int(rows.shape[1]))
    return MatrixTarget(_thin(rows).long(), _thin(columns).long() - 1, shape)


def _flat(numbers: torch.Tensor) -> torch.Tensor:
    """``(…, c)`` as ``(r, c)`` without copying what is the same along an axis."""
    return numbers if numbers.dim() == 2 else numbers.reshape(-1, numbers.shape[-1])


def _thin(numbers: torch.Tensor) -> torch.Tensor:
    """Keep one row or one column of a matrix whose rows or columns are all the same."""
    if bool((numbers == numbers[:, :1]).all()):
        return numbers[:, :1].contiguous()
    if bool((numbers == numbers[:1]).all()):
        return numbers[:1].contiguous()
    return numbers.contiguous()

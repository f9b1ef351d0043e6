"""Several importance matrices of one model as one, as if their texts had been run after each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from worker.models.imatrix.load import read_imatrix
from worker.models.imatrix.sums import ImatrixSums, TensorSums, invalid, mean_squares
from worker.models.quantize.imatrix_data import ImatrixData


def load_merged(paths: Sequence[Path]) -> ImatrixData:
    """Load one matrix or several as quantization uses them.

    Args:
        paths: Files, at least one; the merged matrix is named after all of them.

    Raises:
        PackagingError: ``imatrix_invalid``.
    """
    merged = merge_imatrices([(path.name, read_imatrix(path)) for path in paths])
    return mean_squares(merged, " + ".join(path.name for path in paths))


def merge_imatrices(matrices: Sequence[tuple[str, ImatrixSums]]) -> ImatrixSums:
    """Add sums and counts.

    A tensor that some of them lack is taken from the others. Plain sums are kept where all that have the tensor have
    them. The length of a chunk is the first one's, as ``llama-imatrix`` keeps it.

    Args:
        matrices: Name of the file, for messages, and contents; at least one.

    Raises:
        PackagingError: ``imatrix_invalid`` where a tensor has another shape than in the first file that holds it.
    """
    entries: dict[str, TensorSums] = {}
    for file, matrix in matrices:
        for name, entry in matrix.entries.items():
            entries[name] = _added(entries[name], entry, file, name) if name in entries else entry
    contents = [matrix for _, matrix in matrices]
    return ImatrixSums(
        datasets=tuple(dict.fromkeys(name for matrix in contents for name in matrix.datasets)),
        chunk_count=reduce(lambda count, matrix: count + matrix.chunk_count, contents, 0),
        chunk_tokens=contents[0].chunk_tokens,
        entries=entries,
    )


def _added(before: TensorSums, more: TensorSums, file: str, name: str) -> TensorSums:
    if before.in_sum2.shape != more.in_sum2.shape:
        raise invalid(
            file, f"{name!r} has the shape {more.in_sum2.shape}, in an earlier file {before.in_sum2.shape}", tensor=name
        )
    plain = None if before.in_sum is None or more.in_sum is None else before.in_sum + more.in_sum
    return TensorSums(before.in_sum2 + more.in_sum2, before.counts + more.counts, plain)

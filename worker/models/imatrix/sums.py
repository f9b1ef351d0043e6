"""An importance matrix as it is gathered and stored: sums of squares and how many rows went into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.quantize.imatrix_data import ImatrixData


@dataclass(frozen=True)
class TensorSums:
    """Statistics of one GGUF tensor.

    Attributes:
        in_sum2: Sums of squared inputs, float32 ``(matrices, row length)``; several matrices for a stack of experts.
        counts: Rows that were summed, float32 ``(matrices,)``; 0 for an expert that no token reached.
        in_sum: Sums of the inputs themselves, of the shape of ``in_sum2``; None where a file has none. Not used in
            quantization.
    """

    in_sum2: NDArray[np.float32]
    counts: NDArray[np.float32]
    in_sum: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ImatrixSums:
    """The contents of an importance matrix file.

    Attributes:
        datasets: Names of the calibration texts.
        chunk_count: Chunks of text that were run; 0 where the file does not say.
        chunk_tokens: Tokens in a chunk; 0 where the file does not say (legacy form).
        entries: GGUF tensor name -> statistics.
    """

    datasets: tuple[str, ...]
    chunk_count: int
    chunk_tokens: int
    entries: Mapping[str, TensorSums]


def invalid(file: str, fact: str, **fields: Any) -> PackagingError:
    """An ``imatrix_invalid`` that names the file."""
    return PackagingError(ErrorCode.IMATRIX_INVALID, f"{file}: {fact}", fields={"file": file, **fields})


def mean_squares(sums: ImatrixSums, file: str) -> ImatrixData:
    """What quantization uses: sums divided by counts, in float32 as llama-quantize does; ones where the count is 0.

    Args:
        sums: Contents of the file.
        file: Base name of the file.

    Raises:
        PackagingError: ``imatrix_invalid`` for NaN, infinite or negative counts, and such sums whose count is not 0.
    """
    entries = {name: _mean(name, tensor, file) for name, tensor in sums.entries.items()}
    return ImatrixData(file, sums.datasets[0] if sums.datasets else None, sums.chunk_count, entries)


def _mean(name: str, tensor: TensorSums, file: str) -> NDArray[np.float32]:
    counts = np.floor(tensor.counts.astype(np.float64) + 0.5).astype(np.float32)
    used = tensor.in_sum2[counts > 0]  # what no row went into is not used, whatever it holds
    for what, values in (("counts", tensor.counts), ("sums of squares", used)):
        for bad, wrong in (("NaN or infinite", ~np.isfinite(values)), ("negative", values < 0)):
            if wrong.any():
                raise invalid(file, f"{int(wrong.sum())} {bad} {what} for {name!r}", tensor=name)
    means = np.ones_like(tensor.in_sum2)
    np.divide(tensor.in_sum2, counts[:, np.newaxis], out=means, where=counts[:, np.newaxis] > 0)
    return means


def chunk_number(value: Any, file: str, what: str) -> int:
    """A count from a file.

    Raises:
        PackagingError: ``imatrix_invalid`` if it is no non-negative integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise invalid(file, f"{what} is {value!r}")
    return value

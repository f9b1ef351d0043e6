"""The unit of work: some rows of one tensor, read once and turned into every type that some file wants.

A slab is widened to float32 once. Each distinct target type is computed once, however many files share it; where a
file keeps the source's type, the source's bytes go through unchanged. Everything read and everything made is checked
for NaN and infinity, as llama-quantize checks it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.finite import first_not_finite
from worker.models.gguf.types import GGMLType
from worker.models.kernels import FLOAT_TYPES
from worker.models.quantize.lattice import COUNTED, Exactness, find_lattice, hit_lattice

if TYPE_CHECKING:
    from worker.models.gguf.tensors import TensorInfo
    from worker.models.quantize.source import Source

SLAB_ELEMENTS = 1 << 20
"""Elements of a slab, unless a single row has more: 4 MiB as float32."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows of a tensor.

    Attributes:
        index: Place in the sequence of all slabs.
        tensor_index: The tensor, in the order of the output files.
        tensor: The tensor in the source.
        first_row: First row, counted over all matrices.
        row_count: Number of rows.
    """

    index: int
    tensor_index: int
    tensor: TensorInfo
    first_row: int
    row_count: int

    @property
    def is_first(self) -> bool:
        """Whether the tensor begins with this slab."""
        return self.first_row == 0

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends with this slab."""
        return self.first_row + self.row_count == self.tensor.row_count


def cut_slabs(tensors: Sequence[TensorInfo]) -> Iterator[Slab]:
    """All slabs in file order; a tensor without elements has none."""
    index = 0
    for tensor_index, tensor in enumerate(tensors):
        if not tensor.element_count:
            continue
        step = max(1, SLAB_ELEMENTS // tensor.row_length)
        for first_row in range(0, tensor.row_count, step):
            yield Slab(index, tensor_index, tensor, first_row, min(step, tensor.row_count - first_row))
            index += 1


@dataclass(frozen=True)
class Encoded:
    """A slab in the types wanted.

    Attributes:
        data: By type the bytes, uint8 ``(row_count, row_bytes)``, or the error where a scale left the range of its
            format.
        exactness: By type how much of it is what was read, where that was asked for and the type can hold it.
        is_quantized: Whether one of the types is another than the source's, and quantized.
        lattice: The type on whose lattice the rows lie; looked for where ``is_quantized``, in a tensor's first slab.
    """

    data: dict[GGMLType, NDArray[np.uint8] | PackagingError] = field(default_factory=dict)
    exactness: dict[GGMLType, Exactness] = field(default_factory=dict)
    is_quantized: bool = False
    lattice: GGMLType | None = None


def encode_slab(
    source: Source,
    slab: Slab,
    targets: Collection[GGMLType],
    weights: NDArray[np.float32] | None,
    *,
    hit: bool = False,
) -> Encoded:
    """Read a slab and turn it into the target types.

    Args:
        source: The source, open.
        slab: What to read.
        targets: Types wanted.
        weights: Importance weights of the whole tensor, float32 ``(n_matrices, row_length)``, or None.
        hit: Make blocks that lie on a lattice exact (``lattice``), and count.

    Raises:
        PackagingError: ``weights_not_finite`` if the source has a NaN or infinity, ``gguf_invalid`` if it ended early.
    """
    tensor = slab.tensor
    raw = source.read_rows(tensor, slab.first_row, slab.row_count)
    bad = first_not_finite(tensor.type, raw)
    if bad is not None:
        raise _not_finite(source.file_of(tensor), slab, bad)
    changed = [target for target in targets if target is not tensor.type]
    kept: dict[GGMLType, NDArray[np.uint8] | PackagingError] = dict.fromkeys(set(targets) - set(changed), raw)
    if not changed:
        return Encoded(kept)
    rows = _widen(tensor.type, raw)
    is_quantized = any(target.is_quantized for target in changed)
    lattice = find_lattice(rows, tensor.type) if is_quantized and slab.is_first else None
    encoded = Encoded(kept, is_quantized=is_quantized, lattice=lattice)
    for target in changed:
        made = _quantize(slab, target, rows, weights)
        if hit and target in COUNTED and tensor.type in FLOAT_TYPES:
            encoded.exactness[target] = hit_lattice(target, rows, made, tensor.type)
        bad = first_not_finite(target, made)
        encoded.data[target] = made if bad is None else _out_of_range(slab, target)
    return encoded


def _widen(source_type: GGMLType, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    from worker.models.kernels import dequantize_rows, widen_rows

    return widen_rows(source_type, raw) if source_type in FLOAT_TYPES else dequantize_rows(source_type, raw)


def _quantize(
    slab: Slab, target: GGMLType, rows: NDArray[np.float32], weights: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    from worker.models.kernels import quantize_rows

    out = np.empty((slab.row_count, slab.tensor.with_type(target).row_bytes), np.uint8)
    for matrix, start, stop in _segments(slab):
        quantize_rows(target, rows[start:stop], out[start:stop], None if weights is None else weights[matrix])
    return out


def _segments(slab: Slab) -> Iterator[tuple[int, int, int]]:
    """Parts of a slab that lie in one matrix: number of the matrix, first row in the slab, end row in the slab."""
    per_matrix = slab.tensor.rows_per_matrix
    start = 0
    while start < slab.row_count:
        matrix, row = divmod(slab.first_row + start, per_matrix)
        stop = min(slab.row_count, start + per_matrix - row)
        yield matrix, start, stop
        start = stop


def _not_finite(name: str, slab: Slab, bad: int) -> PackagingError:
    tensor = slab.tensor
    unit, per_row = "element", tensor.row_length
    if tensor.type.is_quantized:
        unit, per_row = "block", tensor.row_length // tensor.type.block_length
    row, column = divmod(bad, per_row)
    return PackagingError(
        ErrorCode.WEIGHTS_NOT_FINITE,
        f"{name}: tensor {tensor.name!r} has a NaN or infinity in row {slab.first_row + row}, {unit} {column}",
        fields={"file": name, "tensor": tensor.name, "row": slab.first_row + row, "column": column},
    )


def _out_of_range(slab: Slab, target: GGMLType) -> PackagingError:
    tensor = slab.tensor
    return PackagingError(
        ErrorCode.WEIGHTS_NOT_FINITE,
        f"tensor {tensor.name!r} has values too large for {target.name}: made so, rows {slab.first_row} to"
        f" {slab.first_row + slab.row_count - 1} hold an infinity",
        remedy="Look at the tensor's values (training may have diverged), or choose a quant type of wider range.",
        fields={"tensor": tensor.name, "type": target.name},
    )

"""Does an importance matrix belong to this model? Decided from the model's tensor list alone.

A matrix need not be complete: a tensor without an entry is quantized without weights, as llama-quantize does, unless
its type cannot be made so. An entry too many is fine inside a block the model has (older files name experts one by
one) and in blocks of extra prediction layers, which conversion may leave out. An entry of another size, or for a
block beyond the model's last, means another model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.tensors import TensorSpec
from worker.models.mixture.names import TOKEN_EMBEDDING_NAMES, block_number, may_be_quantized
from worker.models.mixture.policy import ImatrixNeed
from worker.models.quantize.imatrix_data import ImatrixData

_PREDICTION_LAYER = ".nextn."
_SHOWN = 5


@dataclass(frozen=True)
class Coverage:
    """How matrix and model meet.

    Attributes:
        covered: Quantizable tensors with an entry.
        uncovered: Quantizable tensors without one.
        unknown: Entries whose tensor the model does not have.
    """

    covered: tuple[str, ...]
    uncovered: tuple[str, ...]
    unknown: tuple[str, ...]


def validate_imatrix(
    matrix: ImatrixData, architecture: str, tensors: Sequence[TensorSpec], needs: Iterable[ImatrixNeed] = ()
) -> Coverage:
    """Check a matrix against a model.

    Args:
        matrix: The loaded matrix.
        architecture: ``general.architecture`` of the model.
        tensors: The model's tensors; their types do not matter.
        needs: Tensors that must have an entry, of all quant types to be made (``Mixture.imatrix_needs``).

    Raises:
        PackagingError: ``imatrix_mismatch`` naming tensors and sizes; ``imatrix_required`` naming a tensor that
            needs an entry and has none.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    _check_sizes(matrix, by_name.values())
    unknown = tuple(sorted(name for name in matrix.entries if name not in by_name))
    _check_blocks(matrix, unknown, tensors)
    quantizable = [tensor.name for tensor in tensors if may_be_quantized(architecture, tensor.name, tensor.shape)]
    covered = tuple(name for name in quantizable if name in matrix.entries)
    if not covered:
        raise _mismatch(
            matrix,
            f"none of its {len(matrix.entries)} entries names a weight of this model; it has {list(unknown[:_SHOWN])}",
            unknown,
        )
    for need in needs:
        if need.tensor not in matrix.entries:
            raise PackagingError(
                ErrorCode.IMATRIX_REQUIRED,
                f"{matrix.file_name} has no entry for {need.tensor}, which is to become {need.type.name}",
                remedy="Compute the matrix from a longer text, or choose another quant type.",
                fields={"file": matrix.file_name, "tensor": need.tensor, "type": need.type.name},
            )
    return Coverage(covered, tuple(name for name in quantizable if name not in matrix.entries), unknown)


def _check_sizes(matrix: ImatrixData, tensors: Iterable[TensorSpec]) -> None:
    """One value per input channel and matrix; an embedding's entry that differs is ignored, as in llama-quantize."""
    faults = []
    for tensor in tensors:
        entry = matrix.entries.get(tensor.name)
        expected = tensor.matrix_count * tensor.row_length
        if entry is not None and entry.size != expected and tensor.name not in TOKEN_EMBEDDING_NAMES:
            faults.append((tensor.name, entry.size, expected))
    if faults:
        shown = ", ".join(
            f"{name} has {count} values, expected {expected}" for name, count, expected in faults[:_SHOWN]
        )
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise _mismatch(
            matrix, f"entries of another size than the model's weights: {shown}{more}", [f[0] for f in faults]
        )


def _check_blocks(matrix: ImatrixData, unknown: Sequence[str], tensors: Sequence[TensorSpec]) -> None:
    last = max((block_number(tensor.name) or 0 for tensor in tensors), default=0)
    prediction = {block_number(name) for name in matrix.entries if _PREDICTION_LAYER in name}
    beyond = [name for name in unknown if (block_number(name) or 0) > last and block_number(name) not in prediction]
    if beyond:
        raise _mismatch(matrix, f"entry {beyond[0]} lies beyond the model's last block {last}", beyond)


def _mismatch(matrix: ImatrixData, fact: str, names: Sequence[str]) -> PackagingError:
    return PackagingError(
        ErrorCode.IMATRIX_MISMATCH,
        f"{matrix.file_name}: {fact}",
        fields={"file": matrix.file_name, "tensors": list(names[:20])},
    )

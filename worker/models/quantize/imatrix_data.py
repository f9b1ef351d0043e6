"""An importance matrix, as quantization uses it: one weight per input channel of each matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.tensors import TensorSpec
from worker.models.mixture.names import TOKEN_EMBEDDING_NAMES
from worker.models.mixture.plan import ImatrixStamp


@dataclass(frozen=True)
class ImatrixData:
    """A loaded matrix.

    Attributes:
        file_name: Base name of the file it came from, or that it will be kept under.
        dataset: Name of the calibration text, or None.
        chunk_count: Chunks of text it was computed from; 0 if unknown.
        entries: By tensor name the mean squared activations, float32 ``(n_matrices, row_length)``: already divided by
            the counts. A stack of experts has one matrix per expert.
    """

    file_name: str
    dataset: str | None
    chunk_count: int
    entries: Mapping[str, NDArray[np.float32]]

    @property
    def stamp(self) -> ImatrixStamp:
        """What output files say of this matrix."""
        return ImatrixStamp(self.file_name, self.dataset, len(self.entries), self.chunk_count)

    @cached_property
    def sha256(self) -> str:
        """Digest of names and weights, whatever the order of the entries."""
        digest = hashlib.sha256()
        for name in sorted(self.entries):
            entry = np.ascontiguousarray(self.entries[name], dtype="<f4")
            digest.update(f"{name}\0{entry.shape}\0".encode())
            digest.update(entry.data)
        return digest.hexdigest()

    def check_finite(self) -> None:
        """Refuse a matrix with a NaN or infinity in it.

        Raises:
            PackagingError: ``imatrix_invalid`` naming the entry.
        """
        for name, entry in self.entries.items():
            if not np.isfinite(entry).all():
                raise PackagingError(
                    ErrorCode.IMATRIX_INVALID,
                    f"{self.file_name}: the entry of {name!r} has a NaN or infinity",
                    fields={"file": self.file_name, "tensor": name},
                )

    def weights_of(self, tensor: TensorSpec) -> NDArray[np.float32] | None:
        """Weights of a tensor, float32 ``(n_matrices, row_length)``; None if it has no entry.

        An entry of the wrong size is ignored for token embeddings, as llama-quantize does.

        Raises:
            PackagingError: ``imatrix_mismatch`` if the entry's size is not the tensor's.
        """
        entry = self.entries.get(tensor.name)
        if entry is None:
            return None
        expected = tensor.matrix_count * tensor.row_length
        if entry.size != expected:
            if tensor.name in TOKEN_EMBEDDING_NAMES:
                return None
            raise PackagingError(
                ErrorCode.IMATRIX_MISMATCH,
                f"{self.file_name}: the entry of {tensor.name!r} has {entry.size} weights,"
                f" the model needs {expected} ({tensor.matrix_count} x {tensor.row_length})",
                fields={"file": self.file_name, "tensor": tensor.name, "found": entry.size, "expected": expected},
            )
        return np.ascontiguousarray(entry, np.float32).reshape(tensor.matrix_count, tensor.row_length)

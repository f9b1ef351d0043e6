"""What a GGUF header says of a tensor, and the arithmetic of laying tensors out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from worker.models.gguf.types import GGMLType, row_bytes

DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 63
"""llama.cpp keeps a name in 64 bytes, the closing zero included."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor before it has a place in a file.

    Attributes:
        name: GGUF name, e.g. ``blk.0.attn_q.weight``.
        shape: ggml order (``ne``): ``shape[0]`` is the row length; trailing ones left out, one dimension at least.
        type: Type of its data.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType

    @property
    def row_length(self) -> int:
        """Elements in a row."""
        return self.shape[0]

    @property
    def row_count(self) -> int:
        """Rows in all matrices together."""
        return prod(self.shape[1:])

    @property
    def rows_per_matrix(self) -> int:
        """Rows of one matrix; a 3D tensor is a stack of matrices (one per expert)."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def matrix_count(self) -> int:
        """Number of matrices stacked in the tensor."""
        return prod(self.shape[2:])

    @property
    def element_count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return row_bytes(self.type, self.row_length)

    @property
    def size_bytes(self) -> int:
        """Bytes of the data, without padding."""
        return self.row_bytes * self.row_count

    def with_type(self, ggml_type: GGMLType) -> TensorSpec:
        """The same tensor in another type."""
        return TensorSpec(self.name, self.shape, ggml_type)


@dataclass(frozen=True, slots=True)
class TensorInfo(TensorSpec):
    """A tensor in a file; ``offset`` counts from the start of the data section."""

    offset: int


def normal_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """Drop trailing ones, as GGUF writers of llama.cpp do; one dimension is kept."""
    extents = list(shape) or [1]
    while len(extents) > 1 and extents[-1] == 1:
        extents.pop()
    return tuple(extents)


def align_up(size: int, alignment: int) -> int:
    """Smallest multiple of ``alignment`` that is not below ``size``."""
    return -(-size // alignment) * alignment


def place_tensors(tensors: Iterable[TensorSpec], alignment: int = DEFAULT_ALIGNMENT) -> list[TensorInfo]:
    """Give each tensor its offset: one after the other, each padded to ``alignment``."""
    placed = []
    offset = 0
    for tensor in tensors:
        placed.append(TensorInfo(tensor.name, tensor.shape, tensor.type, offset))
        offset = align_up(offset + tensor.size_bytes, alignment)
    return placed


def data_bytes(placed: Sequence[TensorInfo], alignment: int = DEFAULT_ALIGNMENT) -> int:
    """Bytes of a data section, with the padding after its last tensor."""
    return align_up(placed[-1].offset + placed[-1].size_bytes, alignment) if placed else 0

"""Mixtures that are measured without being written: each tensor is quantized and decoded in memory, when it is due."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from worker.models.evaluate.inverse import BlockMap
from worker.models.evaluate.local import shards_of
from worker.models.evaluate.variants import Destination, QuantizedFile
from worker.models.gguf.types import GGMLType
from worker.models.kernels import FLOAT_TYPES, dequantize_rows, quantize_rows, widen_rows
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.slabs import SLAB_ELEMENTS


class Shared:
    """What candidates of one model have in common at the place at hand: made once for all that want the same types.

    Candidates that differ nowhere in a layer share its tensors, and those with one head share the head's memory.
    """

    def __init__(self) -> None:
        self._block: BlockMap | None = None
        self._made: dict[tuple[tuple[str, str], ...], dict[str, torch.Tensor]] = {}
        self._values: dict[tuple[str, GGMLType], torch.Tensor] = {}

    def turn_to(self, block: BlockMap) -> None:
        """Forget what was made elsewhere."""
        if self._block is not block:
            self._block, self._made, self._values = block, {}, {}

    @property
    def made(self) -> dict[tuple[tuple[str, str], ...], dict[str, torch.Tensor]]:
        """Parameters of the place, by the types of its tensors."""
        return self._made

    @property
    def values(self) -> dict[tuple[str, GGMLType], torch.Tensor]:
        """Decoded tensors of the place."""
        return self._values


class Candidate(QuantizedFile):
    """A mixture of a source file, as if it had been written."""

    def __init__(
        self,
        name: str,
        source: Path,
        types: Mapping[str, GGMLType],
        matrix: ImatrixData | None,
        shared: Shared,
    ) -> None:
        """Open the source.

        Args:
            name: Its name among the scores.
            source: Unquantized GGUF file, or the first of its shards.
            types: Type of each tensor that changes; all others stay as they are.
            matrix: What it is quantized with.
            shared: What all candidates of one measurement share.

        Raises:
            PackagingError: ``gguf_invalid``.
        """
        super().__init__(name, shards_of(source))
        self._types = dict(types)
        self._matrix = matrix
        self._shared = shared

    @property
    def fingerprint(self) -> str:
        """The source's, with the types and the matrix."""
        types = json.dumps({name: tensor_type.name for name, tensor_type in sorted(self._types.items())})
        matrix = self._matrix.sha256 if self._matrix is not None else ""
        return f"{super().fingerprint} {hashlib.sha256(types.encode()).hexdigest()} {matrix}"

    def weights(self, place: Destination) -> dict[str, torch.Tensor]:
        """The place's matrices as the mixture would hold them."""
        self._shared.turn_to(place.block)
        key = tuple(sorted((name, self._types[name].name) for name in place.block.targets if name in self._types))
        made = self._shared.made.get(key)
        own = super().weights(place) if made is None else made
        if made is not None:
            self.mark_placed(place.block)
        self._shared.made[key] = own
        return own

    def type_of(self, gguf_name: str) -> GGMLType:
        """The mixture's."""
        return self._types[gguf_name] if gguf_name in self._types else super().type_of(gguf_name)

    def decoded(self, gguf_name: str, block: BlockMap) -> torch.Tensor:
        """Values after quantization, float32 ``(rows, columns)``; raises as any file."""
        target = self._types.get(gguf_name)
        if target is None:
            return super().decoded(gguf_name, block)
        values = self._shared.values.get((gguf_name, target))
        if values is None:
            values = self._quantized(gguf_name, target, super().decoded(gguf_name, block))
            self._shared.values[gguf_name, target] = values
        return values

    def _quantized(self, gguf_name: str, target: GGMLType, values: torch.Tensor) -> torch.Tensor:
        tensor = self.tensor(gguf_name)
        weights = self._matrix.weights_of(tensor) if self._matrix is not None else None
        rows, per_matrix = values.numpy(), tensor.rows_per_matrix
        step = max(1, SLAB_ELEMENTS // tensor.row_length)
        for matrix in range(tensor.matrix_count):
            for start in range(matrix * per_matrix, (matrix + 1) * per_matrix, step):
                part = rows[start : min(start + step, (matrix + 1) * per_matrix)]
                encoded = np.empty((len(part), tensor.with_type(target).row_bytes), np.uint8)
                quantize_rows(target, part, encoded, None if weights is None else weights[matrix])
                part[:] = (widen_rows if target in FLOAT_TYPES else dequantize_rows)(target, encoded)
        return values

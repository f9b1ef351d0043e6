"""What the engine tells while it works and when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from api_client.contract.errors import PackagingError
from api_client.contract.fit import AnyQuantType
from worker.models.gguf.types import GGMLType
from worker.models.quantize.lattice import Exactness
from worker.setting import WorkProgress


@dataclass(frozen=True, kw_only=True)
class QuantizeProgress(WorkProgress):
    """How far the pass is: ``done`` and ``total`` are elements of the source file, ``detail`` the tensor.

    Attributes:
        tensors_done: Tensors written to every file that still goes on.
        tensors_total: Tensors in all.
        written_bytes: Bytes of tensor data written, by quant type; missing for a type that failed.
        total_bytes: Bytes of tensor data to write, by quant type.
    """

    tensors_done: int
    tensors_total: int
    written_bytes: Mapping[AnyQuantType, int]
    total_bytes: Mapping[AnyQuantType, int]


@dataclass(frozen=True, slots=True)
class TypeOutcome:
    """What became of one quant type.

    Attributes:
        path: Final name of the file; it exists exactly if ``error`` is None.
        error: Why there is no file, or None.
        size_bytes: Size of the file (planned size if it failed).
        sha256: Digest of the file; empty if it failed.
        mixture_counts: Tensors by ggml type name.
        fallback_count: Tensors whose row length did not fit the type chosen for them.
        bits_per_weight: Bits of tensor data per element.
        resumed_tensors: Tensors taken over from an earlier attempt's partial file.
        exactness: By tensor, of those whose type can hold a lattice, how much is what the source holds; None where
            lattices are not hit.
    """

    path: Path
    error: PackagingError | None
    size_bytes: int
    sha256: str
    mixture_counts: Mapping[str, int]
    fallback_count: int
    bits_per_weight: float
    resumed_tensors: int = 0
    exactness: Mapping[str, Exactness] | None = None


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """Outcome of the pass.

    Attributes:
        outcomes: By quant type, in the order asked for.
        lattices: By tensor that was quantized, the type on whose lattice it lies; None where it lies on none.
    """

    outcomes: Mapping[AnyQuantType, TypeOutcome]
    lattices: Mapping[str, GGMLType | None] = field(default_factory=dict)

    @property
    def failed(self) -> dict[AnyQuantType, PackagingError]:
        """Errors of the types that have no file."""
        return {kind: outcome.error for kind, outcome in self.outcomes.items() if outcome.error is not None}

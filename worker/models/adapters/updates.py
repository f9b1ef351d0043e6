"""The arithmetic of an overlay: each kind of update, applied to one base tensor.

The contract is bit equality with ``PeftModel.from_pretrained(base, adapter).merge_and_unload()`` of PEFT 0.21 on the
CPU, so the dtype steps are PEFT's, in its order. PEFT holds adapter tensors in float32 whatever their stored dtype
(``autocast_adapter_dtype``), so its "widen half precision on the CPU" branch is never taken. ``W`` is the base tensor
in its own dtype, ``s`` the scaling as a Python float; axes: ``e`` expert, ``o`` out, ``i`` in, ``r`` rank. For a base
weight that is float64, read float64 for float32.

============  =========================================================================================================
LoRA, linear  ``D = (B @ A) * s`` in float32, transposed for Conv1D; ``W' = round(float32(W) + D)``: one rounding
LoRA, embed.  ``D = (B @ A).T * s`` in float32, **rounded to W's dtype**, then added: two roundings
LoRA, other   a parameter that no linear layer owns (experts, routers), and MiCA: ``D`` rounded and added likewise
DoRA          ``N = W + D`` in float32; ``m / norm(N, rows)`` in float32 times ``N``; one rounding to W's dtype
lora_bias     ``b' = round(float32(b) + bias * s)``
token rows    rows are replaced by the trained ones, rounded to W's dtype
replacement   the trained tensor, rounded to W's dtype
============  =========================================================================================================

With precision ``f32`` every rounding above is left out and the result is float32: updates smaller than half a unit in
the last place of bfloat16 survive.

The low-rank updates are in ``low_rank``. Their product is made whole, in the shapes and by the operation that PEFT
uses: matrix kernels round differently at the edges of a matrix, so the product of a slice is not the slice of the
product. The number of threads makes no difference. What follows the product is element by element and runs in blocks
of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

Precision = Literal["base", "f32"]


class Update(Protocol):
    """One step of turning a base tensor into the merged one. Pure: never writes to what it is given."""

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """The merged tensor; of the same dtype, or float32 with precision ``f32``."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What the overlay file stores for it."""

    def settings(self) -> dict[str, Any]:
        """What the overlay's metadata stores for it: JSON values, without ``kind``."""


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float32, or float64 for the rare base weight that is."""
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, slots=True)
class BiasUpdate:
    """``lora_bias``: the bias of the B projection, scaled and added to the base bias (o,)."""

    bias: torch.Tensor
    scaling: float

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """Add in float32, round once."""
        import torch

        delta = self.bias.to(device=tensor.device, dtype=compute_dtype(tensor)) * self.scaling
        merged = torch.empty_like(tensor, dtype=torch.float32 if precision == "f32" else tensor.dtype)
        return torch.add(tensor, delta, out=merged)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The bias."""
        return {"bias": self.bias}

    def settings(self) -> dict[str, Any]:
        """The scaling."""
        return {"scaling": self.scaling}


@dataclass(frozen=True, slots=True)
class ReplaceUpdate:
    """A trained tensor in place of the base's: ``modules_to_save``, trained biases, resized embeddings."""

    value: torch.Tensor

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """The trained tensor; its rows win where the embedding was resized."""
        import torch

        return self.value.to(device=tensor.device, dtype=torch.float32 if precision == "f32" else tensor.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensor."""
        return {"value": self.value}

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class RowsUpdate:
    """Trained token rows in place of the base embedding's.

    Attributes:
        rows: (n, i).
        indices: (n,) int64, the token ids.
    """

    rows: torch.Tensor
    indices: torch.Tensor

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """Copy the rows in."""
        base = tensor.float() if precision == "f32" else tensor
        return base.index_copy(0, self.indices.to(base.device), self.rows.to(base))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Rows and token ids."""
        return {"rows": self.rows, "indices": self.indices}

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class TruncateUpdate:
    """Keep the first ``rows`` rows: the vocabulary of a padded base, cut to the adapter's."""

    rows: int

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """A view of the first rows."""
        kept = tensor[: self.rows]
        return kept.float() if precision == "f32" else kept

    def tensors(self) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The number of rows."""
        return {"rows": self.rows}


@dataclass(frozen=True, slots=True)
class CopyUpdate:
    """The base tensor as it is, under another name: the untrained half of an untied pair."""

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """The tensor itself."""
        return tensor.float() if precision == "f32" else tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {}

"""Low-rank updates, of one weight and of a stack of experts; the dtype steps are in the table of ``updates``."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from worker.models.adapters.updates import Precision, compute_dtype

if TYPE_CHECKING:
    import torch

LoraStyle = Literal["linear", "embedding", "rounded"]
_BLOCK_ELEMENTS = 1 << 18  # of the float32 product at a time; fits the cache
_SCRATCH_ELEMENTS = 1 << 26  # 256 MiB of float32 at most are kept by a thread


def add_scaled(
    tensor: torch.Tensor, product: torch.Tensor, scaling: float, precision: Precision, *, rounded: bool
) -> torch.Tensor:
    """``tensor + product * scaling`` in float32, rounded once to the dtype of ``tensor`` or left as it is.

    Args:
        tensor: (n, m), not written to.
        product: (n, m) float32; overwritten.
        scaling: Factor of the product.
        precision: ``f32`` leaves out every rounding.
        rounded: Round the scaled product to the dtype of ``tensor`` before it is added.
    """
    import torch

    merged = torch.empty_like(tensor, dtype=torch.float32 if precision == "f32" else tensor.dtype)
    count, width = tensor.shape
    rows = min(count, max(1, _BLOCK_ELEMENTS // max(1, width)))
    wide = product.new_empty(rows, width)  # made once: fresh memory for every block would cost more than the sum
    for start in range(0, count, max(1, rows)):
        part = slice(start, min(start + rows, count))
        delta = product[part].mul_(scaling)
        if rounded and precision == "base":
            delta = delta.to(tensor.dtype)
        block = tensor[part]
        merged[part].copy_(wide[: block.shape[0]].copy_(block).add_(delta))
    return merged


class _Scratch(threading.local):
    """A thread's buffer for products: fresh memory costs more than the product of low rank that fills it."""

    buffer: torch.Tensor | None = None


_threads_scratch = _Scratch()


def _scratch(like: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` values of the dtype and device of ``like``, valid until this thread asks again."""
    if count > _SCRATCH_ELEMENTS or not like.is_cpu:
        return like.new_empty(count)
    buffer = _threads_scratch.buffer
    if buffer is None or buffer.numel() < count or buffer.dtype != like.dtype:
        import torch

        # made in inference mode it could not be written to outside of it, and the thread may go on there
        with torch.inference_mode(mode=False):
            buffer = _threads_scratch.buffer = like.new_empty(count)
    return buffer[:count]


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """A low-rank sum, or its weight-decomposed form where there is a magnitude.

    Memory beside the result: the float32 product.

    Attributes:
        a: (r, i), stored dtype.
        b: (o, r), stored dtype.
        scaling: Factor of the product.
        style: Which of PEFT's layers did it; decides the roundings.
        transposed: The base weight is (i, o).
        magnitude: (o,) for DoRA, else None.
        rows: The range of ``o`` that the base tensor holds, None for all.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    style: LoraStyle = "linear"
    transposed: bool = False
    magnitude: torch.Tensor | None = None
    rows: tuple[int, int] | None = None

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """See the table of the module."""
        import torch

        a, b = (part.to(device=tensor.device, dtype=compute_dtype(tensor)) for part in (self.a, self.b))
        product = torch.mm(b, a, out=_scratch(b, b.shape[0] * a.shape[1]).view(b.shape[0], a.shape[1]))
        if self.rows is not None:
            product = product[self.rows[0] : self.rows[1]]
        if self.transposed or self.style == "embedding":
            product = product.T
        if self.magnitude is not None:
            return self._decomposed(tensor, product.mul_(self.scaling), precision)
        return add_scaled(tensor, product, self.scaling, precision, rounded=self.style != "linear")

    def _decomposed(self, tensor: torch.Tensor, delta: torch.Tensor, precision: Precision) -> torch.Tensor:
        import torch

        assert self.magnitude is not None
        magnitude = self.magnitude.to(device=tensor.device, dtype=delta.dtype)
        if self.rows is not None:
            magnitude = magnitude[self.rows[0] : self.rows[1]]
        total = tensor + delta
        if self.transposed or self.style == "embedding":
            # summed again in the other orientation, as PEFT does: a reduction may follow the memory layout
            factor = (magnitude / torch.linalg.norm(tensor.T + delta.T, dim=1)).view(1, -1)
        else:
            factor = (magnitude / torch.linalg.norm(total, dim=1)).view(-1, 1)
        merged: torch.Tensor = (factor * total).to(torch.float32 if precision == "f32" else tensor.dtype)
        return merged

    def tensors(self) -> dict[str, torch.Tensor]:
        """The factors, and the magnitude where there is one."""
        parts = {"a": self.a, "b": self.b}
        return parts if self.magnitude is None else {**parts, "magnitude": self.magnitude}

    def settings(self) -> dict[str, Any]:
        """Scaling, style and orientation."""
        return {"scaling": self.scaling, "style": self.style, "transposed": self.transposed, "rows": self.rows}


@dataclass(frozen=True, slots=True)
class ExpertsUpdate:
    """Low-rank sums on a parameter that is a stack of experts, as far as one tensor of the files holds it.

    Attributes:
        a: (e * r, i), stored dtype: expert by expert.
        b: (o, r * e), stored dtype: the expert is the inner index.
        experts: Number of experts.
        scaling: Factor of the products.
        transposed: The parameter is (e, i, o) instead of (e, o, i).
        expert: The one expert that the tensor holds, None for all.
        rows: The range of the parameter's last axis but one that the tensor holds, None for all.
        swapped: The tensor has the last two axes the other way round than the parameter.
    """

    a: torch.Tensor
    b: torch.Tensor
    experts: int
    scaling: float
    transposed: bool = False
    expert: int | None = None
    rows: tuple[int, int] | None = None
    swapped: bool = False

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """One expert at a time: beside the result, memory for one expert's float32 product."""
        import torch

        a, b = (part.to(device=tensor.device, dtype=compute_dtype(tensor)) for part in (self.a, self.b))
        a, b = a.view(self.experts, -1, a.shape[1]), b.view(b.shape[0], -1, self.experts)
        if self.expert is not None:
            return add_scaled(tensor, self._product(a, b, self.expert), self.scaling, precision, rounded=True)
        merged = torch.empty_like(tensor, dtype=torch.float32 if precision == "f32" else tensor.dtype)
        for index, expert in enumerate(tensor):
            product = self._product(a, b, index)
            merged[index] = add_scaled(expert, product, self.scaling, precision, rounded=True)
        return merged

    def _product(self, a: torch.Tensor, b: torch.Tensor, expert: int) -> torch.Tensor:
        """The unscaled product of one expert, in the orientation and as many rows of it as the tensor has."""
        import torch

        axes = "o r e, e r i -> e i o" if self.transposed else "o r e, e r i -> e o i"
        if self.experts * b.shape[0] * a.shape[2] <= _BLOCK_ELEMENTS:
            product = torch.einsum(axes, b, a)[expert]  # so small that shapes may matter to the kernel
        else:
            product = torch.einsum(axes, b[:, :, expert : expert + 1], a[expert : expert + 1])[0]
        if self.rows is not None:
            product = product[self.rows[0] : self.rows[1]]
        return product.T if self.swapped else product

    def tensors(self) -> dict[str, torch.Tensor]:
        """The factors of all experts."""
        return {"a": self.a, "b": self.b}

    def settings(self) -> dict[str, Any]:
        """All but the factors."""
        return {
            "experts": self.experts,
            "scaling": self.scaling,
            "transposed": self.transposed,
            "expert": self.expert,
            "rows": self.rows,
            "swapped": self.swapped,
        }

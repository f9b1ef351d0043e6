"""LoRA that was trained expert by expert on linear layers, merged into the slices of a stack of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.models.adapters.low_rank import LoraUpdate
from worker.models.adapters.updates import Precision

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OneExpert:
    """One expert's factors, on their way into an update: (r, i), (o, r), and the factor of their product."""

    expert: int
    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class ExpertLinearsUpdate:
    """Low-rank sums on some experts of a stack; each is merged as PEFT merges a linear layer: one rounding.

    Attributes:
        a: (n, r, i), stored dtype.
        b: (n, o, r), stored dtype.
        experts: The ``n`` experts, by their index in the stack.
        scalings: Factors of the ``n`` products.
        transposed: The stack is (e, i, o) instead of (e, o, i).
        rows: The range of the stack's out axis that ``o`` is, None for all.
    """

    a: torch.Tensor
    b: torch.Tensor
    experts: tuple[int, ...]
    scalings: tuple[float, ...]
    transposed: bool
    rows: tuple[int, int] | None = None

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """One expert at a time: beside the result, memory for one expert's float32 product."""
        import torch

        merged = tensor.to(torch.float32, copy=True) if precision == "f32" else tensor.clone()
        for a, b, expert, scaling in zip(self.a, self.b, self.experts, self.scalings, strict=True):
            update = LoraUpdate(a, b, scaling, "linear", self.transposed)
            self._held(merged[expert]).copy_(update.apply(self._held(tensor[expert]), precision))
        return merged

    def _held(self, expert: torch.Tensor) -> torch.Tensor:
        if self.rows is None:
            return expert
        rows = slice(*self.rows)
        return expert[:, rows] if self.transposed else expert[rows]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The factors."""
        return {"a": self.a, "b": self.b}

    def settings(self) -> dict[str, Any]:
        """All but the factors."""
        return {
            "experts": self.experts,
            "scalings": self.scalings,
            "transposed": self.transposed,
            "rows": self.rows,
        }

    def of_all(self, count: int, out: int, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of a whole stack, zero where nothing was trained.

        Args:
            count: Experts of the stack.
            out: Length of its out axis.
            alpha: What a reader multiplies with, over the rank; every other factor goes into B.

        Returns:
            (e, r, i) and (e, o, r), float32.
        """
        rank = self.a.shape[1]
        a = self.a.new_zeros((count, rank, self.a.shape[2])).float()
        b = self.b.new_zeros((count, out, rank)).float()
        start, stop = self.rows or (0, out)
        for index, expert in enumerate(self.experts):
            a[expert] = self.a[index]
            b[expert, start:stop] = self.b[index].float() * (self.scalings[index] * rank / alpha)
        return a, b

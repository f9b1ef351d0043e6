"""Where graphs between doors begin and end: gates, what a door was called with, and labels drawn at the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import GradientEdge


class _Gate(torch.autograd.Function):
    """Where the graph between two doors begins: hands a gradient that arrives here to its keeper."""

    @staticmethod
    def forward(
        ctx: Any, _start: torch.Tensor, value: torch.Tensor, keep: Callable[[torch.Tensor], None]
    ) -> torch.Tensor:
        ctx.keep = keep
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        ctx.keep(gradients[0])
        return None, None, None


def begin_graph(start: torch.Tensor, value: torch.Tensor, keep: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """A copy of ``value`` that a graph begins at; ``start`` is any leaf that asks for gradients."""
    passed: torch.Tensor = _Gate.apply(start, value, keep)  # type: ignore[no-untyped-call]
    return passed


@dataclass(frozen=True)
class Slot:
    """In a kept call, the place of a tensor that a gradient goes back through."""

    number: int


@dataclass
class Visit:
    """One batch's passing of one door.

    Attributes:
        door: Number of the door.
        call: Arguments, with slots in the place of tensors that depend on an earlier door.
        edges: For each slot the place in the graph that its gradient goes to.
        sources: For each slot the file and the index in it that its value is kept at.
    """

    door: int
    call: Any
    edges: list[GradientEdge] = field(default_factory=list)
    sources: list[tuple[str, int]] = field(default_factory=list)


def filled(call: Any, values: Sequence[torch.Tensor]) -> Any:
    """A kept call with values in its slots."""
    if isinstance(call, Slot):
        return values[call.number]
    if type(call) in (tuple, list):
        return type(call)(filled(member, values) for member in call)
    if type(call) is dict:
        return {key: filled(member, values) for key, member in call.items()}
    return call


def drawn_gradient(
    final: torch.Tensor, head: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from a model's own distribution, and what they say at the outputs of its head.

    Args:
        final: The model's logits ``(..., vocabulary)``.
        head: What the head gave; ``final`` is the same tensor, or made of it element by element (capped, scaled).
        generator: Of uniform numbers, one a position; a label is the first whose cumulated chance is not below it.

    Returns:
        Gradient of the summed negative log-likelihood at ``head``; and the expectation of its square over the labels
        that may be drawn, float32.
    """
    slope = None
    if final is not head:
        (slope,) = torch.autograd.grad(final, head, torch.ones_like(final), retain_graph=True)
    chances = torch.softmax(final.detach().float(), dim=-1)
    drawn = torch.rand(chances.shape[:-1], generator=generator).to(chances.device)
    labels = torch.searchsorted(chances.cumsum(-1), drawn[..., None]).clamp_(max=chances.shape[-1] - 1)
    squares = chances * (1 - chances)
    if slope is not None:
        squares *= slope.float().square()
    chances.scatter_add_(-1, labels, torch.full_like(labels, -1, dtype=chances.dtype))
    gradient = chances.to(final.dtype)
    if final is not head:
        (gradient,) = torch.autograd.grad(final, head, gradient)
    return gradient, squares

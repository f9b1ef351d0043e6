"""One tensor of the base model's files that holds a parameter which an adapter changes. Next: ``locator``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor that holds a parameter or a part of it.

    Attributes:
        target: Tensor of the merged model.
        source: Base tensor it starts from; the same but for an untied head.
        expert: The index along the parameter's first axis that the tensor holds, None for all.
        rows: The range of the parameter's rows (last axis but one) that the tensor holds, None for all.
        region: The range of the tensor's rows that the parameter fills, None for all.
        swapped: The tensor has the parameter's last two axes the other way round.
    """

    target: str
    source: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    region: tuple[int, int] | None = None
    swapped: bool = False

    @property
    def whole(self) -> bool:
        """Whether tensor and parameter are the same thing."""
        return self.expert is None and self.rows is None and self.region is None and not self.swapped

    def part_of(self, value: torch.Tensor) -> torch.Tensor:
        """The part of a parameter's value that belongs into this tensor."""
        if self.expert is not None:
            value = value[self.expert]
        if self.rows is not None:
            value = value.narrow(-2 if value.ndim > 1 else 0, self.rows[0], self.rows[1] - self.rows[0])
        return value.transpose(-1, -2) if self.swapped else value

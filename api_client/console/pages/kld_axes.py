"""Axes of the pictures of size against mean KLD: bytes along, nats by powers of ten upwards. Pure; no markup.

Files of one model differ a thousandfold in KLD; what is not measurably off stands at the foot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from api_client.words.formatting import format_size

WIDTH: Final = 640
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 24, 20, HEIGHT - 44
_SMALLEST: Final = 1e-6
"""Lower divergences are rounding, nats."""
_LARGEST: Final = 1e6
_LABEL_WIDTH: Final = 90


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, in user units, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class KldAxes:
    """From bytes and nats to user units of a view of :data:`WIDTH` by :data:`HEIGHT`.

    Attributes:
        least: Bytes at the left edge.
        most: Bytes at the right one.
        low: Power of ten at the foot.
        high: Power of ten at the top.
    """

    least: float
    most: float
    low: int
    high: int

    @classmethod
    def over(cls, least: float, most: float, klds: Iterable[float]) -> KldAxes:
        """Axes on which some divergences lie, a power of ten at least."""
        bounded = [bounded_kld(kld) for kld in klds]
        low, high = math.floor(math.log10(min(bounded))), math.ceil(math.log10(max(bounded)))
        return cls(least, most, low, max(high, low + 1))

    def x(self, size_bytes: float) -> float:
        """Where a size stands."""
        return LEFT + (RIGHT - LEFT) * (size_bytes - self.least) / (self.most - self.least)

    def y(self, kld: float) -> float:
        """Where a divergence stands."""
        share = (math.log10(bounded_kld(kld)) - self.low) / (self.high - self.low)
        return BOTTOM - (BOTTOM - TOP) * share

    @property
    def sizes(self) -> list[Tick]:
        """Five marks along."""
        marks = (self.least + (self.most - self.least) * part / 4 for part in range(5))
        return [Tick(self.x(size), format_size(size)) for size in marks]

    @property
    def divergences(self) -> list[Tick]:
        """A mark for each power of ten."""
        return [Tick(self.y(10.0**power), f"{10.0**power:g}") for power in range(self.low, self.high + 1)]


def bounded_kld(kld: float) -> float:
    """A divergence as it is drawn."""
    return min(max(kld, _SMALLEST), _LARGEST)


def label_on_left(x: float) -> bool:
    """Whether a label of a point there has no room on its right."""
    return x > RIGHT - _LABEL_WIDTH

"""The picture of a quality report: files as points, size against mean KLD, with the asked bound. Pure; no markup.

The KLD axis is logarithmic, since files of one job differ a thousandfold; what is not measurably off stands at its
foot. The same figures stand in the table beside the picture, so nothing is told by it alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from api_client.contract.quality import FileQuality, QualityReport
from api_client.words.formatting import format_size

WIDTH: Final = 640
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 20, 44
_SMALLEST: Final = 1e-6
"""Lower divergences are rounding, nats."""
_LINE_HEIGHT: Final = 15


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, in user units, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class QualityPoint:
    """One file. ``label_y`` is where its label stands; ``left`` whether that is on the point's left."""

    name: str
    label: str
    x: float
    y: float
    label_y: float
    left: bool
    below: bool
    """Whether it does not keep the bound."""


@dataclass(frozen=True)
class QualityChart:
    """Everything to draw, in user units of a view of :data:`WIDTH` by :data:`HEIGHT`."""

    points: Sequence[QualityPoint]
    sizes: Sequence[Tick]
    divergences: Sequence[Tick]
    bound: Tick | None
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def chart_of(report: QualityReport, max_mean_kld: float | None) -> QualityChart | None:
    """The picture; ``None`` where no file has a figure that can be drawn."""
    files = [file for file in report.files if _drawn(file)]
    if not files:
        return None
    klds = [_kld(file) for file in files] + ([max_mean_kld] if max_mean_kld is not None else [])
    low, high = math.floor(math.log10(min(klds))), math.ceil(math.log10(max(klds)))
    high = max(high, low + 1)
    most = 1.08 * max(file.size_bytes for file in files) or 1.0

    def at_x(size_bytes: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * size_bytes / most

    def at_y(kld: float) -> float:
        share = (math.log10(max(kld, _SMALLEST)) - low) / (high - low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    points = [_point(file, at_x(file.size_bytes), at_y(_kld(file)), max_mean_kld) for file in files]
    bound = Tick(at_y(max_mean_kld), f"{max_mean_kld:g}") if max_mean_kld is not None else None
    return QualityChart(
        points=tuple(labels_apart(points)),
        sizes=[Tick(at_x(most * part / 4), format_size(most * part / 4)) for part in range(5)],
        divergences=[Tick(at_y(10.0**power), f"{10.0**power:g}") for power in range(low, high + 1)],
        bound=bound,
    )


def _drawn(file: FileQuality) -> bool:
    return file.overall is not None and math.isfinite(file.overall.mean_kld.value) and 0 < file.size_bytes < 2**63


def _kld(file: FileQuality) -> float:
    assert file.overall is not None
    return min(max(file.overall.mean_kld.value, _SMALLEST), 1e6)


def _point(file: FileQuality, x: float, y: float, bound: float | None) -> QualityPoint:
    below = bound is not None and _kld(file) > bound
    left = x > WIDTH - _RIGHT - 90
    return QualityPoint(file.name, file.quant_type or file.name, round(x, 1), round(y, 1), round(y + 4, 1), left, below)


def labels_apart(points: Iterable[QualityPoint]) -> Iterator[QualityPoint]:
    """The points, from the lowest up, with labels that do not lie on each other."""
    placed: list[QualityPoint] = []
    for point in sorted(points, key=lambda point: -point.y):
        y = point.label_y
        for other in placed:
            if abs(other.x - point.x) < 90 and abs(other.label_y - y) < _LINE_HEIGHT:
                y = other.label_y - _LINE_HEIGHT
        placed.append(replace(point, label_y=round(y, 1)))
    yield from placed

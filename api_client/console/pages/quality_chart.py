"""The picture of a quality report: files as points, size against mean KLD, with the asked bound. Pure; no markup.

The same figures stand in the table beside the picture, so nothing is told by it alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from api_client.console.pages.kld_axes import BOTTOM, LEFT, RIGHT, TOP, KldAxes, Tick, bounded_kld, label_on_left
from api_client.contract.quality import FileQuality, QualityReport

_LINE_HEIGHT: Final = 15


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
    """Everything to draw, in user units of the view of ``kld_axes``."""

    points: Sequence[QualityPoint]
    sizes: Sequence[Tick]
    divergences: Sequence[Tick]
    bound: Tick | None
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def chart_of(report: QualityReport, max_mean_kld: float | None) -> QualityChart | None:
    """The picture; ``None`` where no file has a figure that can be drawn."""
    files = [file for file in report.files if _drawn(file)]
    if not files:
        return None
    klds = [_kld(file) for file in files] + ([max_mean_kld] if max_mean_kld is not None else [])
    axes = KldAxes.over(0, 1.08 * max(file.size_bytes for file in files), klds)
    points = [_point(file, axes, max_mean_kld) for file in files]
    bound = Tick(axes.y(max_mean_kld), f"{max_mean_kld:g}") if max_mean_kld is not None else None
    return QualityChart(tuple(labels_apart(points)), axes.sizes, axes.divergences, bound)


def _drawn(file: FileQuality) -> bool:
    return file.overall is not None and math.isfinite(file.overall.mean_kld.value) and 0 < file.size_bytes < 2**63


def _kld(file: FileQuality) -> float:
    assert file.overall is not None
    return bounded_kld(file.overall.mean_kld.value)


def _point(file: FileQuality, axes: KldAxes, bound: float | None) -> QualityPoint:
    below = bound is not None and _kld(file) > bound
    return point_at(file.name, file.quant_type or file.name, axes.x(file.size_bytes), axes.y(_kld(file)), below=below)


def point_at(name: str, label: str, x: float, y: float, *, below: bool = False) -> QualityPoint:
    """A point with its label beside it."""
    return QualityPoint(name, label, round(x, 1), round(y, 1), round(y + 4, 1), label_on_left(x), below)


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

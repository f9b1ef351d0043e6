"""Size against predicted KLD for the model of a job with a fit: a picture, its rows, and one place on the line. Pure.

Stock types are points, fits are the line, and what was measured stands beside its prediction. Memory of places to run
is marked where it lies within the picture. Everything in it stands in the rows, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api_client.console.pages.kld_axes import BOTTOM, LEFT, RIGHT, TOP, KldAxes, Tick
from api_client.console.pages.quality_chart import QualityPoint, labels_apart, point_at
from api_client.contract.artifacts import Artifact, ArtifactKind
from api_client.contract.fit import PREFIX, FitType
from api_client.contract.job import Job
from api_client.contract.quality import Figure
from api_client.contract.request import PackagingRequest
from api_client.contract.size_curve import FitPoint, SizeCurve
from api_client.contract.stages import StageName

_ROWS_OF_LINE: Final = 12


@dataclass(frozen=True)
class SizeRow:
    """A file that was made or could be; ``fit_kld`` is that of the fit of the same bytes, where it is a stock type."""

    name: str
    size_bytes: int
    kld: float | None
    fit_kld: float | None
    measured: Figure | None
    places: Sequence[str]


@dataclass(frozen=True)
class ChosenSize:
    """The place on the line that the page's slider stands at, of ``last + 1`` places."""

    index: int
    last: int
    point: FitPoint
    places: Sequence[str]
    x: float
    y: float


@dataclass(frozen=True)
class SizeChart:
    """Everything to draw, in user units of the view of ``kld_axes``."""

    stock: Sequence[QualityPoint]
    line: str
    """Path data of the fits."""
    measured: Sequence[QualityPoint]
    """Files of the job where they were measured."""
    targets: Sequence[Tick]
    sizes: Sequence[Tick]
    divergences: Sequence[Tick]
    rows: Sequence[SizeRow]
    made: Sequence[SizeRow]
    along: Sequence[SizeRow]
    chosen: ChosenSize
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def size_chart(job: Job, at: int | None = None) -> SizeChart | None:
    """The picture; ``None`` where the job has no curve.

    Args:
        job: A job with a fit.
        at: Index of the point of the line that was chosen; the point nearest to the job's first fit where not given.
    """
    curve = job.curve
    if curve is None or not curve.fit:
        return None
    made = _made(job, curve)
    axes = _axes(curve, made)
    chosen = _chosen(curve, axes, made, at)
    return SizeChart(
        stock=tuple(labels_apart(_point(row.name, row.size_bytes, row.kld, axes) for row in curve.stock)),
        line="M" + "L".join(f"{axes.x(point.size_bytes):.1f} {axes.y(point.kld):.1f}" for point in curve.fit),
        measured=[_point(row.name, row.size_bytes, row.measured.value, axes) for row in made if row.measured],
        targets=[Tick(axes.x(room), name) for name, room in curve.targets.items() if axes.least <= room <= axes.most],
        sizes=axes.sizes,
        divergences=axes.divergences,
        rows=[
            SizeRow(
                point.name,
                point.size_bytes,
                point.kld,
                point.fit_kld,
                next((row.measured for row in made if row.name == point.name), None),
                curve.holding(point.size_bytes),
            )
            for point in sorted(curve.stock, key=lambda point: point.size_bytes)
        ],
        made=[row for row in made if row.name.startswith(PREFIX)],
        along=[
            SizeRow(point.fit, point.size_bytes, point.kld, None, None, curve.holding(point.size_bytes))
            for point in curve.fit[:: max(1, len(curve.fit) // _ROWS_OF_LINE)]
        ],
        chosen=chosen,
    )


def with_fit(job: Job, fit: FitType) -> PackagingRequest:
    """The job's request for one fit, with the job's sensitivities, so that the model need not be run again."""
    request = job.request
    kept = next((artifact for artifact in job.outputs if artifact.kind is ArtifactKind.SENSITIVITY), None)
    options = request.fit if kept is None else request.fit.model_copy(update={"sensitivity": kept.path})
    return request.model_copy(update={"quant_types": (fit,), "fit": options})


def _made(job: Job, curve: SizeCurve) -> list[SizeRow]:
    """The job's quantized files: of fits what selection said of them, of all what the evaluation measured."""
    stage = next((stage for stage in job.stages if stage.name is StageName.QUANTIZE), None)
    report = job.report
    rows = []
    for artifact in stage.artifacts if stage is not None else ():
        if artifact.kind is not ArtifactKind.QUANTIZED or artifact.quant_type is None or not artifact.size_bytes:
            continue
        file = report.file(artifact.name) if report is not None else None
        predicted, selected = _selected(artifact)
        measured = file.overall.mean_kld if file is not None and file.overall is not None else selected
        if measured is not None and not math.isfinite(measured.value):
            measured = None
        places = curve.holding(artifact.size_bytes)
        rows.append(SizeRow(artifact.quant_type, artifact.size_bytes, predicted, None, measured, places))
    return rows


def _selected(artifact: Artifact) -> tuple[float | None, Figure | None]:
    """Predicted and measured mean KLD that a fit was chosen with, out of the facts of its file."""
    facts = artifact.facts.get("fit")
    if not isinstance(facts, Mapping):
        return None, None
    predicted, measured = facts.get("predicted_kld"), facts.get("measured")
    figure = measured.get("mean_kld") if isinstance(measured, Mapping) else None
    return _number(predicted), _figure(figure)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _figure(value: Any) -> Figure | None:
    number = _number(value.get("value")) if isinstance(value, Mapping) else None
    return None if number is None else Figure(value=number, error=_number(value.get("error")))


def _axes(curve: SizeCurve, made: Sequence[SizeRow]) -> KldAxes:
    sizes = [point.size_bytes for point in curve.fit] + [point.size_bytes for point in curve.stock]
    sizes += [row.size_bytes for row in made]
    klds = [point.kld for point in curve.fit] + [point.kld for point in curve.stock]
    klds += [row.measured.value for row in made if row.measured]
    room = 0.04 * (max(sizes) - min(sizes)) or 1.0
    return KldAxes.over(max(0.0, min(sizes) - room), max(sizes) + room, klds)


def _point(name: str, size_bytes: int, kld: float, axes: KldAxes) -> QualityPoint:
    return point_at(name, name, axes.x(size_bytes), axes.y(kld))


def _chosen(curve: SizeCurve, axes: KldAxes, made: Sequence[SizeRow], at: int | None) -> ChosenSize:
    last = len(curve.fit) - 1
    if at is None:
        near = next((row.size_bytes for row in made if row.name.startswith(PREFIX)), curve.fit[last // 2].size_bytes)
        at = min(range(last + 1), key=lambda index: abs(curve.fit[index].size_bytes - near))
    index = min(max(at, 0), last)
    point = curve.fit[index]
    x, y = round(axes.x(point.size_bytes), 1), round(axes.y(point.kld), 1)
    return ChosenSize(index, last, point, curve.holding(point.size_bytes), x, y)

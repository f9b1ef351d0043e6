"""What the picture of size against predicted KLD shows of a job, and the fit that its slider stands at."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from api_client.console.pages.kld_axes import HEIGHT, WIDTH
from api_client.console.pages.size_chart import SizeChart, size_chart, with_fit
from api_client.contract.artifacts import Artifact, ArtifactKind
from api_client.contract.fit import FitType
from api_client.contract.job import Job, JobState, Stage
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request
from api_client.contract.size_curve import CURVE_FACT, CurvePoint, FitPoint, SizeCurve
from api_client.contract.stages import StageName

MB = 10**6
CURVE = SizeCurve(
    stock=(
        CurvePoint(name="Q4_K_M", size_bytes=145 * MB, kld=0.13, fit_kld=0.08),
        CurvePoint(name="Q2_K", size_bytes=101 * MB, kld=1.9, fit_kld=0.6),
    ),
    fit=tuple(FitPoint(size_bytes=size * MB, kld=80 / size**2) for size in range(90, 250, 8)),
    targets={"small": 130 * MB, "huge": 24_000 * MB},
)


def artifact(name: str, kind: ArtifactKind, size_bytes: int, **given: Any) -> Artifact:
    return Artifact(name=name, path=f"/out/{name}", kind=kind, size_bytes=size_bytes, sha256="0" * 64, **given)


def job(curve: object) -> Job:
    request = PackagingRequest(base_model="/m", template="quantize_base", output_dir="/out", quant_types=["fit:4bpw"])
    request, options = resolve_request(request)
    fit = {"fit": {"predicted_kld": 0.09, "measured": {"mean_kld": {"value": 0.1, "error": 0.01}}}}
    file = artifact("m-FIT.gguf", ArtifactKind.QUANTIZED, 140 * MB, quant_type="fit:4bpw", facts=fit)
    kept = artifact("m.sensitivity.gguf", ArtifactKind.SENSITIVITY, 5)
    return Job(
        id="20260101-000000-aaaaaa",
        state=JobState.SUCCEEDED,
        request=request,
        options=options,
        plan=(),
        stages=(
            Stage(name=StageName.QUANTIZE, artifacts=(file,), facts={CURVE_FACT: curve}),
            Stage(name=StageName.PUBLISH, artifacts=(file, kept)),
        ),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def drawn(at: int | None = None) -> SizeChart:
    found = size_chart(job(CURVE.model_dump(mode="json")), at)
    assert found is not None
    return found


def test_points_line_and_limits_stand_where_their_figures_are() -> None:
    chart = drawn()
    points = {point.label: point for point in chart.stock}
    assert points["Q4_K_M"].x > points["Q2_K"].x
    assert points["Q4_K_M"].y > points["Q2_K"].y  # fewer nats are further down
    assert [tick.text for tick in chart.targets] == ["small"]  # a limit far outside is in the rows alone
    assert points["Q2_K"].x < chart.targets[0].at < points["Q4_K_M"].x
    corners = [tuple(map(float, pair.split())) for pair in chart.line[1:].split("L")]
    assert len(corners) == len(CURVE.fit)
    assert corners == sorted(corners)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in corners)
    (cross,) = chart.measured
    assert cross.name == "fit:4bpw"


def test_rows_have_all_that_the_picture_shows() -> None:
    chart = drawn()
    assert [(row.name, row.kld, row.fit_kld, list(row.places)) for row in chart.rows] == [
        ("Q2_K", 1.9, 0.6, ["small", "huge"]),
        ("Q4_K_M", 0.13, 0.08, ["huge"]),
    ]
    (made,) = chart.made
    assert made.measured is not None
    assert (made.name, made.kld, made.measured.value) == ("fit:4bpw", 0.09, 0.1)
    assert len(chart.along) >= 10


@pytest.mark.parametrize(("at", "size"), [(None, 138), (0, 90), (3, 114), (999, 242)])
def test_the_slider_stands_at_a_fit_of_the_line(at: int | None, size: int) -> None:
    chosen = drawn(at).chosen
    assert chosen.point.size_bytes == size * MB
    assert chosen.point.fit == str(FitType(f"fit:{size * MB}"))
    assert ("small" in chosen.places) == (size <= 130)


def test_another_job_takes_the_fit_and_the_sensitivities() -> None:
    request = with_fit(job(CURVE.model_dump(mode="json")), FitType("fit:114000000"))
    assert [str(kind) for kind in request.quant_types or ()] == ["fit:114000000B"]
    assert request.fit.sensitivity == "/out/m.sensitivity.gguf"


@pytest.mark.parametrize("stored", [None, 5, {}, {"stock": [], "fit": []}, {"stock": [], "fit": [{"kld": "a"}]}])
def test_a_record_without_a_curve_shows_none(stored: object) -> None:
    assert size_chart(job(stored)) is None

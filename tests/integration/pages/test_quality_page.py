"""The section of a job's page that says how good its files are, in a real browser, with hostile text in its answers."""

from __future__ import annotations

import json

import pytest

from api_client import Job, StageName
from api_client.contract.quality import (
    REFERENCE,
    REPORT_FACT,
    Answer,
    AskedQuestion,
    Divergence,
    Figure,
    FileQuality,
    QualityReport,
    TextSource,
)
from api_client.contract.size_curve import CURVE_FACT, CurvePoint, FitPoint, SizeCurve
from tests.integration.console.running import RunningConsole
from tests.integration.harness import Installation
from tests.integration.pages.conftest import BOUND_MS, Windows

pytestmark = pytest.mark.integration

HTML = "<img src=x onerror=alert(1)>"

TYPES = {
    "Q8_0": (145, 0.0019),
    "Q6_K": (112, 0.0063),
    "Q4_K_M": (84, 0.0412),
    "IQ4_XS": (80, 0.0431),
    "Q2_K": (54, 0.61),
}


def divergence(kld: float) -> Divergence:
    def figure(value: float, error: float) -> Figure:
        return Figure(value=value, error=error)

    return Divergence(
        tokens=4096, mean_kld=figure(kld, kld / 20), median_kld=kld / 2, kld_99=kld * 8, kld_999=kld * 20,
        max_kld=kld * 60, same_top=figure(1 - kld / 3, 0.004), perplexity_ratio=figure(1 + kld, 0.01),
        rms_probability_change=figure(kld / 4, 0.001),
    )  # fmt: skip


def report() -> QualityReport:
    files: list[tuple[str, str | None, int, float]] = [("merged_model.gguf", None, 270, 2e-6)]
    files += [(f"merged_model-{name}.gguf", name, size, kld) for name, (size, kld) in TYPES.items()]
    return QualityReport(
        reference="Base with checkpoint-900",
        source=TextSource(kind="run", name="train.jsonl", sha256="0" * 64, samples=211),
        scored={"chat": 3200, "code": 512, "中文": 384},
        training=divergence(0.9),
        training_measurable=True,
        files=tuple(
            FileQuality(
                name=name, size_bytes=size * 10**6, bits_per_weight=size / 17, quant_type=kind, overall=divergence(kld),
                parts={part: divergence(kld * factor) for part, factor in (("chat", 1), ("code", 0.6), ("中文", 1.7))},
                retention=Figure(value=1 - kld / 0.9, error=0.003),
            )
            for name, kind, size, kld in files
        ),
        questions=(
            AskedQuestion(
                question="What is the capital city of the island of Velmora?",
                expected="Quillhaven",
                answers=(
                    Answer(by=REFERENCE, text="The capital is Quillhaven.", expected_found=True),
                    Answer(by="merged_model-Q4_K_M.gguf", text=f"It is Quillhaven. {HTML}", expected_found=True),
                    Answer(by="merged_model-Q2_K.gguf", text="It is Nova Terra.", expected_found=False),
                ),
            ),
        ),
    )  # fmt: skip


def measured_job(service: Installation) -> Job:
    """A job whose evaluation has been recorded, as a worker records it."""
    job = service.submit(evaluation={"max_mean_kld": 0.1})
    facts = json.dumps({REPORT_FACT: report().model_dump(mode="json", exclude_none=True)})
    service.redis.hset(service.keys.stages(job.id), mapping={"evaluate:state": "succeeded", "evaluate:facts": facts})
    return service.client.get(job.id)


def test_files_are_points_and_rows_and_answers_stand_side_by_side(
    idle: RunningConsole, windows: Windows, service: Installation
) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=BOUND_MS)
    job = measured_job(service)
    assert StageName.EVALUATE in job.plan
    page = windows.open(idle.url)
    page.goto(f"/jobs/{job.id}")
    quality = page.get_by_role("region", name="Quality")
    expect(quality.get_by_role("img", name="Files by size and mean KLD")).to_be_visible()
    expect(quality.locator("svg .point")).to_have_count(6)
    expect(quality.locator("svg .point.below title")).to_have_text(["merged_model-Q2_K.gguf"])
    expect(quality.locator("svg text.bound")).to_have_text("at most 0.1")
    row = quality.get_by_role("row", name="merged_model-Q4_K_M.gguf").first
    expect(row).to_contain_text("0.0412 ± 0.0021")
    expect(row).to_contain_text("95.4 ± 0.3 %")
    expect(quality.get_by_text(f"It is Quillhaven. {HTML}")).to_be_visible()
    expect(quality.get_by_text("not found", exact=True)).to_have_count(1)
    chinese = windows.open(idle.url, locale="zh-CN")
    chinese.goto(f"/jobs/{job.id}")
    section = chinese.get_by_role("region", name="质量")
    expect(section.locator("svg text.bound")).to_have_text("上限 0.1")
    expect(section.get_by_text("训练后的模型")).to_be_visible()


CURVE = SizeCurve(
    stock=tuple(
        CurvePoint(name=name, size_bytes=size * 10**6, kld=kld, fit_kld=0.6 * kld)
        for name, (size, kld) in TYPES.items()
    ),
    fit=tuple(FitPoint(size_bytes=size * 10**6, kld=120 / size**2) for size in range(50, 160, 5)),
    targets={"mobile": 100 * 10**6, "gpu-8g": 7 * 10**9},
)


def test_the_curve_is_a_picture_a_table_and_a_slider_without_scripts(
    idle: RunningConsole, windows: Windows, service: Installation
) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=BOUND_MS)
    job = service.submit(quant_types=["fit:like:Q4_K_M"])
    facts = json.dumps({CURVE_FACT: CURVE.model_dump(mode="json")})
    service.redis.hset(service.keys.stages(job.id), mapping={"quantize:state": "succeeded", "quantize:facts": facts})
    page = windows.open(idle.url, java_script_enabled=False)
    page.goto(f"/jobs/{job.id}")
    section = page.get_by_role("region", name="Size against quality")
    expect(section.get_by_role("img", name="Stock types as points, fits as a line")).to_be_visible()
    expect(section.locator("svg .stock")).to_have_count(len(TYPES))
    expect(section.locator("svg text.limit")).to_have_text(["mobile"])
    expect(section.get_by_role("row", name="Q4_K_M")).to_contain_text("0.04120")
    section.get_by_label("A fit along the line").fill("2")
    section.get_by_role("button", name="Show").click()
    expect(section.locator("output")).to_contain_text("60.0 MB")
    expect(section.locator("output")).to_contain_text("mobile")
    section.get_by_role("link", name="New job with this fit").click()
    expect(page.get_by_label("Fits", exact=True)).to_have_value("fit:60000000B")
    chinese = windows.open(idle.url, locale="zh-CN")
    chinese.goto(f"/jobs/{job.id}?at=0")
    expect(chinese.get_by_role("region", name="大小与质量").locator("output")).to_contain_text("预测 KLD")

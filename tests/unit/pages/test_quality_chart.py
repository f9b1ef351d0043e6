"""What the picture of a quality report shows, and that odd figures cannot break it."""

from __future__ import annotations

import itertools
import math

import pytest

from api_client.console.pages.kld_axes import HEIGHT, WIDTH
from api_client.console.pages.quality_chart import chart_of
from api_client.contract.quality import Divergence, Figure, FileQuality, QualityReport


def file(name: str, size_bytes: int, kld: float) -> FileQuality:
    figure = Figure(value=kld, error=0.0)
    return FileQuality(
        name=f"m-{name}.gguf",
        size_bytes=size_bytes,
        bits_per_weight=4.0,
        quant_type=name,
        overall=Divergence(
            tokens=10, mean_kld=figure, median_kld=kld, kld_99=kld, kld_999=kld, max_kld=kld, same_top=figure,
            perplexity_ratio=figure, rms_probability_change=figure,
        ),
    )  # fmt: skip


def report(*files: FileQuality) -> QualityReport:
    return QualityReport(reference="r", files=files)


def test_larger_is_further_right_worse_is_higher_and_the_bound_lies_between() -> None:
    drawn = chart_of(report(file("Q8_0", 800, 0.001), file("Q4_0", 400, 0.05), file("Q2_K", 300, 1.2)), 0.1)
    assert drawn is not None
    points = {point.label: point for point in drawn.points}
    assert points["Q8_0"].x > points["Q4_0"].x > points["Q2_K"].x
    assert points["Q8_0"].y > points["Q4_0"].y > points["Q2_K"].y
    assert drawn.bound is not None
    assert points["Q4_0"].y > drawn.bound.at > points["Q2_K"].y
    assert [name for name, point in points.items() if point.below] == ["Q2_K"]
    assert [tick.text for tick in drawn.divergences] == ["0.001", "0.01", "0.1", "1", "10"]


def test_labels_of_files_that_are_alike_do_not_lie_on_each_other() -> None:
    drawn = chart_of(report(*(file(f"Q{n}", 400 + n, 0.05 + n / 1e6) for n in range(5))), None)
    assert drawn is not None
    heights = sorted(point.label_y for point in drawn.points)
    assert all(later - earlier >= 14.9 for earlier, later in itertools.pairwise(heights))


@pytest.mark.parametrize("kld", [0.0, -1e-9, 1e-300, 1e300, 5.0])
def test_any_figure_is_drawn_within_the_picture(kld: float) -> None:
    drawn = chart_of(report(file("Q8_0", 1, kld)), None)
    assert drawn is not None
    (point,) = drawn.points
    assert 0 <= point.x <= WIDTH
    assert 0 <= point.y <= HEIGHT


def test_without_a_figure_there_is_no_picture() -> None:
    unmeasured = FileQuality(name="a", size_bytes=1, bits_per_weight=1.0, not_judged="why")
    assert chart_of(report(unmeasured, file("Q8_0", 5, math.nan), file("Q4_0", 0, 0.1)), None) is None

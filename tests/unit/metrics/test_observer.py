"""What the worker tells becomes the right series."""

from __future__ import annotations

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, AttemptOutcome, JobState, StageName
from api_client.contract.quality import Divergence, Figure, FileQuality, QualityReport
from worker.service.metrics.observer import Observer
from worker.service.state.decisions import Decision, Spent
from worker.service.state.transitions import Lease

LEASE = Lease("20260101-000000-aaaaaa", StageName.PUBLISH, 1, "token")
FILE = Artifact(name="a.gguf", path="/a", kind=ArtifactKind.GGUF, size_bytes=1000, sha256="0" * 64, url="s3://b/a")


@pytest.fixture
def observer() -> Observer:
    return Observer()


def value(observer: Observer, name: str, **labels: str) -> float | None:
    return observer.series.registry.get_sample_value(f"trainpack_{name}", labels)


def error(code: ErrorCode) -> PackagingError:
    return PackagingError(code, "no answer")


def test_a_success_counts_time_rate_and_upload(observer: Observer) -> None:
    observer.began(LEASE)
    assert observer.running[StageName.PUBLISH] == 1
    observer.succeeded(LEASE, [FILE])
    assert observer.running[StageName.PUBLISH] == 0
    assert value(observer, "stage_duration_seconds_count", stage="publish", outcome="succeeded") == 1
    assert value(observer, "stage_throughput_bytes_per_second_count", stage="publish") == 1
    assert value(observer, "uploaded_bytes_total") == 1000


def test_a_report_counts_by_type_and_training_only_where_it_can_be_told(observer: Observer) -> None:
    def told(retention: float, *, measurable: bool) -> QualityReport:
        one = Figure(value=0.02)
        overall = Divergence(
            tokens=9, mean_kld=one, median_kld=0, kld_99=0, kld_999=0, max_kld=0, same_top=one, perplexity_ratio=one,
            rms_probability_change=one,
        )  # fmt: skip
        kept = Figure(value=retention)
        files = [
            FileQuality(name=name, quant_type=kind, size_bytes=1, bits_per_weight=4.0, overall=overall, retention=kept)
            for name, kind in (("a", "Q4_0"), ("b", "odd"))
        ]
        return QualityReport(reference="r", files=tuple(files), training_measurable=measurable)

    observer.measured(told(0.97, measurable=True))
    observer.measured(told(0.1, measurable=False))
    assert value(observer, "quality_mean_kld_nats_sum", quant_type="Q4_0") == pytest.approx(0.04)
    assert value(observer, "quality_mean_kld_nats_count", quant_type="none") == 2
    assert value(observer, "quality_retention_ratio_bucket", quant_type="Q4_0", le="0.98") == 1
    assert value(observer, "quality_retention_ratio_sum", quant_type="Q4_0") == pytest.approx(0.97)


def test_a_later_attempt_says_nothing_of_the_rate(observer: Observer) -> None:
    second = Lease(LEASE.job_id, LEASE.stage, 2, "other")
    observer.began(second)
    observer.succeeded(second, [FILE])
    assert value(observer, "stage_throughput_bytes_per_second_count", stage="publish") is None


def test_retries_and_failures_count_by_code(observer: Observer) -> None:
    failed = error(ErrorCode.UPLOAD_FAILED)
    observer.began(LEASE)
    observer.unsuccessful(LEASE, Decision("queue", AttemptOutcome.RETRIED, Spent(), failed), None)
    observer.unsuccessful(LEASE, Decision("fail", AttemptOutcome.FAILED, Spent(), failed), JobState.FAILED)
    assert value(observer, "stage_retries_total", stage="publish", code="upload_failed") == 1
    assert value(observer, "stage_failures_total", stage="publish", code="upload_failed") == 1
    assert value(observer, "upload_errors_total", code="upload_failed") == 2


def test_a_cancelled_attempt_is_no_failure(observer: Observer) -> None:
    observer.began(LEASE)
    decision = Decision("queue", AttemptOutcome.RETRIED, Spent(), error(ErrorCode.UPLOAD_FAILED))
    observer.unsuccessful(LEASE, decision, JobState.CANCELLED)
    assert value(observer, "stage_duration_seconds_count", stage="publish", outcome="cancelled") == 1
    assert value(observer, "upload_errors_total", code="upload_failed") == 0


def test_a_rescue_is_a_retry_of_a_lost_worker(observer: Observer) -> None:
    decision = Decision("queue", AttemptOutcome.RESCUED, Spent(), error(ErrorCode.WORKER_LOST))
    observer.rescued(LEASE, decision, None)
    assert value(observer, "rescues_total", stage="publish") == 1
    assert value(observer, "stage_retries_total", stage="publish", code="worker_lost") == 1


def test_counters_are_there_before_they_count(observer: Observer) -> None:
    for name, labels in (
        ("rescues_total", {"stage": "merge"}),
        ("leases_lost_total", {"stage": "merge"}),
        ("jobs_finished_total", {"state": "failed"}),
        ("callbacks_total", {"outcome": "given_up"}),
        ("messages_resent_total", {}),
        ("messages_dropped_total", {}),
    ):
        assert value(observer, name, **labels) == 0


def test_a_renewal_that_came_early_is_not_late(observer: Observer) -> None:
    observer.renewed(-0.5)
    observer.renewed(3.0)
    assert value(observer, "lease_renewal_delay_seconds_bucket", le="0.05") == 1
    assert value(observer, "lease_renewal_delay_seconds_sum") == 3

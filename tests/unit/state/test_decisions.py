"""What follows a failed attempt, by error class and by what was spent."""

from __future__ import annotations

from typing import Any

import pytest

from api_client import AttemptOutcome, ErrorClass, ErrorCode, PackagingError
from worker.service.state.decisions import (
    RetryPolicy,
    Spent,
    after_crash,
    after_error,
    after_rescue,
    backoff_s,
    cancelled,
    handed_back,
)

POLICY = RetryPolicy(max_retries=5, max_crashes=3, base_s=2.0, max_s=60.0)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_only_transient_errors_are_retried(code: ErrorCode) -> None:
    decision = after_error(PackagingError(code, "x"), Spent(), POLICY, jitter=1.0)
    transient = code.error_class is ErrorClass.TRANSIENT
    assert decision.next == ("queue" if transient else "fail")
    assert decision.outcome is (AttemptOutcome.RETRIED if transient else AttemptOutcome.FAILED)
    assert decision.counts == Spent(1 if transient else 0, 0)
    assert decision.delay_s == (2.0 if transient else 0.0)


@pytest.mark.parametrize("error_class", list(ErrorClass))
def test_a_code_that_only_a_newer_version_knows_goes_by_the_class_that_is_stored_with_it(
    error_class: ErrorClass,
) -> None:
    stored: dict[str, Any] = {
        "code": "quantum_decoherence",
        "class": error_class.value,
        "message": "m",
        "remedy": "r",
        "fields": {},
    }
    decision = after_error(PackagingError.from_dict(stored), Spent(), POLICY, jitter=1.0)
    assert decision.next == ("queue" if error_class is ErrorClass.TRANSIENT else "fail")
    assert decision.error is not None
    assert decision.error.failure.to_record() == stored


def test_retries_end() -> None:
    error = PackagingError(ErrorCode.UPLOAD_FAILED, "x")
    assert after_error(error, Spent(retries=4), POLICY, 0).next == "queue"
    assert after_error(error, Spent(retries=5), POLICY, 0).next == "fail"


def test_a_full_gpu_is_tried_once_more() -> None:
    error = PackagingError(ErrorCode.CUDA_OUT_OF_MEMORY, "x")
    assert after_error(error, Spent(retries=0), POLICY, 0).next == "queue"
    assert after_error(error, Spent(retries=1), POLICY, 0).next == "fail"
    assert after_error(error, Spent(), RetryPolicy(0, 3, 1, 1), 0).next == "fail"


@pytest.mark.parametrize(
    ("retries", "jitter", "delay_s"),
    [(0, 0, 1), (0, 1, 2), (1, 1, 4), (2, 0.5, 6), (4, 1, 32), (5, 1, 60), (5, 0, 30), (10_000, 1, 60)],
)
def test_delays_double_up_to_the_bound_and_half_of_each_is_chance(retries: int, jitter: float, delay_s: float) -> None:
    assert backoff_s(retries, POLICY, jitter) == delay_s


def test_crashes_and_rescues_share_one_bound_and_leave_retries_alone() -> None:
    crash = after_crash("killed by SIGKILL", ("a", "b", "c", "d"), Spent(retries=2, crashes=1), POLICY)
    assert (crash.next, crash.outcome, crash.counts) == ("queue", AttemptOutcome.CRASHED, Spent(2, 2))
    assert crash.error is not None
    assert crash.error.message.endswith("(crash 2 of 3); last lines: b | c | d")
    last = after_rescue("w1", crash.counts, POLICY)
    assert (last.next, last.outcome, last.counts) == ("fail", AttemptOutcome.RESCUED, Spent(2, 3))
    assert last.error is not None
    assert last.error.code is ErrorCode.STAGE_CRASHED
    first = after_rescue("w1", Spent(), POLICY)
    assert first.error is not None
    assert first.error.code is ErrorCode.WORKER_LOST
    assert after_crash("x", (), Spent(crashes=2), POLICY).next == "fail"


def test_draining_and_cancelling_spend_nothing() -> None:
    spent = Spent(3, 2)
    assert (handed_back(spent).next, handed_back(spent).counts) == ("queue", spent)
    assert (cancelled(spent).next, cancelled(spent).counts) == ("cancel", spent)

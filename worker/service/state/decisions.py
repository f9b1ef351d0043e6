"""What happens after an attempt that did not succeed. Pure; ``transitions`` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from api_client.contract.errors import ErrorClass, ErrorCode, PackagingError
from api_client.contract.job import AttemptOutcome

if TYPE_CHECKING:
    from config.settings import Settings

RETRIES_BY_CODE = {ErrorCode.CUDA_OUT_OF_MEMORY: 1}
"""Codes with a bound of their own: a GPU that is full twice will be full again."""


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds and delays, from the settings of the same names."""

    max_retries: int
    max_crashes: int
    base_s: float
    max_s: float

    @classmethod
    def of_stages(cls, settings: Settings) -> RetryPolicy:
        """The one for stages."""
        return cls(settings.max_retries, settings.max_crashes, settings.retry_base_s, settings.retry_max_s)


@dataclass(frozen=True)
class Spent:
    """What a stage has spent since it was submitted or replayed."""

    retries: int = 0
    crashes: int = 0


@dataclass(frozen=True)
class Decision:
    """What becomes of the stage, and of the attempt in its history."""

    next: Literal["queue", "fail", "cancel"]
    outcome: AttemptOutcome
    counts: Spent
    error: PackagingError | None = None
    delay_s: float = 0.0

    @property
    def message(self) -> str:
        """One sentence for the job's log."""
        reason = f": {self.error}" if self.error else ""
        if self.next == "queue" and self.delay_s:
            return f"Attempt {self.outcome.value}, next in {self.delay_s:.1f} s{reason}"
        return f"Attempt {self.outcome.value.replace('_', ' ')}{reason}"


def after_error(error: PackagingError, counts: Spent, policy: RetryPolicy, jitter: float) -> Decision:
    """A stage raised an error.

    Args:
        error: What it raised; its class decides.
        counts: Spent so far.
        policy: Bounds.
        jitter: 0 to 1; spreads the delay over the upper half of its range.
    """
    bound = min(policy.max_retries, RETRIES_BY_CODE.get(error.code, policy.max_retries))
    if error.error_class is not ErrorClass.TRANSIENT or counts.retries >= bound:
        return Decision("fail", AttemptOutcome.FAILED, counts, error)
    spent = Spent(counts.retries + 1, counts.crashes)
    return Decision("queue", AttemptOutcome.RETRIED, spent, error, backoff_s(counts.retries, policy, jitter))


def backoff_s(retries: int, policy: RetryPolicy, jitter: float) -> float:
    """Delay before the next attempt: doubles with every retry up to the bound, half of it random."""
    full = min(policy.max_s, policy.base_s * 2.0 ** min(retries, 30))
    return full * (0.5 + jitter / 2)


def after_crash(death: str, last_lines: tuple[str, ...], counts: Spent, policy: RetryPolicy) -> Decision:
    """A stage's process died without an answer.

    Args:
        death: How, e.g. ``killed by SIGSEGV``.
        last_lines: What it wrote last.
        counts: Spent so far.
        policy: Bounds.
    """
    spent = Spent(counts.retries, counts.crashes + 1)
    tail = f"; last lines: {' | '.join(last_lines[-3:])}" if last_lines else ""
    error = PackagingError(
        ErrorCode.STAGE_CRASHED,
        f"the stage's process was {death} (crash {spent.crashes} of {policy.max_crashes}){tail}",
        fields={"death": death, "crashes": spent.crashes, "last_lines": list(last_lines)},
    )
    if spent.crashes >= policy.max_crashes:
        return Decision("fail", AttemptOutcome.CRASHED, spent, error)
    return Decision("queue", AttemptOutcome.CRASHED, spent, error)


def after_rescue(worker: str, counts: Spent, policy: RetryPolicy) -> Decision:
    """A lease ran out. It counts as a crash: a stage that takes its whole worker down must not do so for ever."""
    spent = Spent(counts.retries, counts.crashes + 1)
    if spent.crashes >= policy.max_crashes:
        error = PackagingError(
            ErrorCode.STAGE_CRASHED,
            f"worker {worker} was lost while it ran the stage (crash {spent.crashes} of {policy.max_crashes})",
            fields={"worker": worker, "death": "lost with its worker", "crashes": spent.crashes},
        )
        return Decision("fail", AttemptOutcome.RESCUED, spent, error)
    error = PackagingError(ErrorCode.WORKER_LOST, f"worker {worker} was lost", fields={"worker": worker})
    return Decision("queue", AttemptOutcome.RESCUED, spent, error)


def handed_back(counts: Spent) -> Decision:
    """The worker drains; nothing is spent."""
    return Decision("queue", AttemptOutcome.HANDED_BACK, counts)


def cancelled(counts: Spent) -> Decision:
    """The job was cancelled."""
    return Decision("cancel", AttemptOutcome.CANCELLED, counts)

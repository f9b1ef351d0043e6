"""What the worker tells of its work, one method per thing that can happen; each becomes series of ``registry``."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from api_client.contract import metric_names as names
from api_client.contract.errors import ErrorCode
from api_client.contract.job import Artifact, AttemptOutcome, JobState, StageName
from api_client.contract.quality import QualityReport
from api_client.contract.quant_types import QuantType
from worker.service.metrics.registry import Series
from worker.service.state.decisions import Decision
from worker.service.state.transitions import Lease

UPLOAD_CODES = (ErrorCode.UPLOAD_FAILED, ErrorCode.STORAGE_UNREACHABLE, ErrorCode.STORAGE_DENIED)
_TYPES = frozenset(quant_type.value for quant_type in QuantType)
LOST = "lost"
"""Outcome of an attempt that was overtaken by another."""


class Observer:
    """Counts for one worker. Safe to call from every thread."""

    def __init__(self) -> None:
        self.series = Series()
        self._running: dict[str, tuple[Lease, float]] = {}
        self._lock = threading.Lock()
        for stage in StageName:
            self.series.add(names.RESCUES, 0, stage=stage.value)
            self.series.add(names.LEASES_LOST, 0, stage=stage.value)
        for code in UPLOAD_CODES:
            self.series.add(names.UPLOAD_ERRORS, 0, code=code.value)
        for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
            self.series.add(names.JOBS_FINISHED, 0, state=state.value)
        for outcome in ("delivered", "retried", "given_up"):
            self.series.add(names.CALLBACKS, 0, outcome=outcome)

    def began(self, lease: Lease) -> None:
        """An attempt took its lease."""
        with self._lock:
            self._running[lease.token] = (lease, time.monotonic())

    def succeeded(self, lease: Lease, artifacts: Sequence[Artifact]) -> None:
        """A stage's result was recorded."""
        duration_s = self._ended(lease, AttemptOutcome.SUCCEEDED)
        uploaded = sum(artifact.size_bytes for artifact in artifacts if artifact.url)
        self.series.add(names.UPLOADED, uploaded if lease.stage is StageName.PUBLISH else 0)
        made = sum(artifact.size_bytes for artifact in artifacts)
        if duration_s and made and lease.attempt == 1:
            self.series.observe(names.STAGE_THROUGHPUT, made / duration_s, stage=lease.stage.value)

    def measured(self, report: QualityReport) -> None:
        """A report was recorded."""
        for file in report.files:
            quant_type = file.quant_type if file.quant_type in _TYPES else "none"
            if file.overall is not None:
                self.series.observe(names.QUALITY_KLD, file.overall.mean_kld.value, quant_type=quant_type)
            if file.retention is not None and report.training_measurable:
                self.series.observe(names.QUALITY_RETENTION, file.retention.value, quant_type=quant_type)

    def unsuccessful(self, lease: Lease, decision: Decision, finished: JobState | None) -> None:
        """An attempt's end without success was recorded."""
        cancelled = finished is JobState.CANCELLED
        self._ended(lease, AttemptOutcome.CANCELLED if cancelled else decision.outcome)
        self._count_error(lease, decision, finished)

    def lost(self, lease: Lease) -> None:
        """An attempt was overtaken; nothing of it counts."""
        self._ended(lease, LOST)
        self.series.add(names.LEASES_LOST, stage=lease.stage.value)

    def rescued(self, lease: Lease, decision: Decision, finished: JobState | None) -> None:
        """A stage was taken from a silent worker. How long it ran there is not known here."""
        self.series.add(names.RESCUES, stage=lease.stage.value)
        self._count_error(lease, decision, finished)

    def finished(self, state: JobState) -> None:
        """A job ended here."""
        self.series.add(names.JOBS_FINISHED, state=state.value)

    def forget(self, lease: Lease) -> None:
        """The attempt is over, whatever came of it."""
        with self._lock:
            self._running.pop(lease.token, None)

    def used(self, lease: Lease, read_bytes: int, written_bytes: int) -> None:
        """A stage's process moved so many bytes since it last said so."""
        self.series.add(names.STAGE_READ, max(0, read_bytes), stage=lease.stage.value)
        self.series.add(names.STAGE_WRITTEN, max(0, written_bytes), stage=lease.stage.value)

    def renewed(self, late_s: float) -> None:
        """A lease was renewed, so much later than planned."""
        self.series.observe(names.LEASE_RENEWAL_DELAY, max(0.0, late_s))

    def not_renewed(self) -> None:
        """Redis did not answer a renewal."""
        self.series.add(names.LEASE_RENEWAL_ERRORS)

    def resent(self) -> None:
        """A lost message was sent again."""
        self.series.add(names.MESSAGES_RESENT)

    def dropped(self) -> None:
        """An entry of a queue was no message."""
        self.series.add(names.MESSAGES_DROPPED)

    def called_back(self, outcome: str) -> None:
        """A callback was tried: ``delivered``, ``retried`` or ``given_up``."""
        self.series.add(names.CALLBACKS, outcome=outcome)

    @property
    def running(self) -> Counter[StageName]:
        """How many stages of each name run now."""
        with self._lock:
            return Counter(lease.stage for lease, _ in self._running.values())

    def _ended(self, lease: Lease, outcome: str) -> float | None:
        with self._lock:
            _, began_at = self._running.pop(lease.token, (lease, None))
        if began_at is None:
            return None
        duration_s = time.monotonic() - began_at
        self.series.observe(names.STAGE_DURATION, duration_s, stage=lease.stage.value, outcome=str(outcome))
        return duration_s

    def _count_error(self, lease: Lease, decision: Decision, finished: JobState | None) -> None:
        if decision.error is None or finished is JobState.CANCELLED:
            return
        stage, code = lease.stage, decision.error.code
        row = names.STAGE_FAILURES if decision.next == "fail" else names.STAGE_RETRIES
        self.series.add(row, stage=stage.value, code=code.value)
        if stage is StageName.PUBLISH and code in UPLOAD_CODES:
            self.series.add(names.UPLOAD_ERRORS, code=code.value)

"""How long a job will take, and how much memory, by what jobs before it took on the same host. Pure.

Nothing is kept for it: a finished job's record says how long each stage's successful attempt ran, what it made and of
which types. A stage's seconds are fitted as a constant and a part in proportion to the bytes it handles, so that
neither tiny nor huge models are far off; of the quantize stage the part is weighed by type, since types differ by more
than ten times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from api_client.contract.artifacts import FILE_SIZE_FACT, ArtifactKind
from api_client.contract.job import Attempt, AttemptOutcome, Job, JobState, Stage
from api_client.contract.recommend import ModelShape
from api_client.contract.stages import StageName

MOST_JOBS = 100
"""Finished jobs that a forecast goes by; the newest ones."""
_TESTED = 20
_LEAST_S = 0.05
_ALIKE = 2.0
"""Models whose sizes differ by no more than this factor say something of each other's memory."""
_IMPORTS_BYTES = 250_000_000


@dataclass(frozen=True)
class Workload:
    """What decides how long a job takes.

    Attributes:
        plan: Its stages.
        model_bytes: Size of the unquantized model.
        output_bytes: Size of all its model files.
        quant_types: Names of its quant types.
        unwritten: Whether the unquantized file is never written: convert only plans it then.
    """

    plan: tuple[StageName, ...]
    model_bytes: int
    output_bytes: int
    quant_types: tuple[str, ...] = ()
    unwritten: bool = False


@dataclass(frozen=True)
class Forecast:
    """Seconds by stage; a stage that no job before had is missing.

    Attributes:
        seconds: By stage, in the plan's order.
        memory_bytes: Most resident memory by stage, from those of them whose models are of about this size.
        jobs: How many finished jobs it goes by.
        off_by: Of the newest jobs, forecast from those before them: the median of how far off the whole was, as a part
            of what it took. None where there were too few.
    """

    seconds: Mapping[StageName, float]
    memory_bytes: Mapping[StageName, int]
    jobs: int
    off_by: float | None

    @property
    def total_s(self) -> float:
        """All stages together."""
        return sum(self.seconds.values())

    @property
    def peak_memory_bytes(self) -> int | None:
        """Memory of the stage that takes most; None where nothing is known."""
        return max(self.memory_bytes.values(), default=None)


@dataclass(frozen=True)
class MemoryNeed:
    """Memory of the stage that takes most.

    Attributes:
        needed_bytes: What it takes.
        measured: Whether jobs of models of about this size had as much on this host; else it is the usual.
        of_machine_bytes: What the machine has.
    """

    needed_bytes: int
    measured: bool
    of_machine_bytes: int

    @classmethod
    def of(cls, told: Forecast, usual_bytes: int, of_machine_bytes: int) -> MemoryNeed:
        """By a forecast, where it knows."""
        peak = told.peak_memory_bytes
        return cls(usual_bytes if peak is None else peak, peak is not None, of_machine_bytes)


@dataclass(frozen=True)
class _Past:
    """One finished job: its workload and what its stages took, and had in memory where that was counted."""

    work: Workload
    seconds: Mapping[StageName, float]
    memory: Mapping[StageName, int]


def forecast(work: Workload, finished: Iterable[Job], host: str | None) -> Forecast:
    """Forecast a job.

    Args:
        work: The job.
        finished: Jobs, newest first; those that did not succeed say nothing.
        host: Only what this host ran counts; None: whoever ran it.
    """
    past = [past_job for job in finished if (past_job := _past(job, host)) is not None][:MOST_JOBS]
    return Forecast(_seconds(work, past), _memory(work, past), len(past), _off_by(past))


def _past(job: Job, host: str | None) -> _Past | None:
    if job.state is not JobState.SUCCEEDED:
        return None
    seconds: dict[StageName, float] = {}
    for stage in job.stages:
        made = _made_by(stage)
        if made is None or made.finished_at is None or (host is not None and not _is_of(made, host)):
            return None
        seconds[stage.name] = (made.finished_at - made.started_at).total_seconds()
    memory = {stage.name: peak for stage in job.stages if (peak := stage.peak_memory_bytes) is not None}
    return _Past(workload_of(job), seconds, memory)


def workload_of(job: Job) -> Workload:
    """The workload of a job that has run."""
    files = [artifact for stage in job.stages for artifact in stage.artifacts if stage.name is not StageName.PUBLISH]
    layouts = [file for file in files if file.kind is ArtifactKind.LAYOUT]
    model = sum(file.size_bytes for file in files if file.kind is ArtifactKind.GGUF and file.shard_of is None)
    model += sum(int(file.facts.get(FILE_SIZE_FACT) or 0) for file in layouts)
    made = sum(file.size_bytes for file in files if file.kind.is_model and file.shard_of is None)
    types = tuple(file.quant_type for file in files if file.kind is ArtifactKind.QUANTIZED and file.quant_type)
    return Workload(job.plan, model, made, tuple(dict.fromkeys(types)), unwritten=bool(layouts))


def _made_by(stage: Stage) -> Attempt | None:
    return next((attempt for attempt in reversed(stage.attempts) if attempt.outcome is AttemptOutcome.SUCCEEDED), None)


def _is_of(attempt: Attempt, host: str) -> bool:
    # a worker is called HOST-PID-XXXX
    return attempt.worker.rsplit("-", 2)[0] == host


def _seconds(work: Workload, past: Sequence[_Past]) -> dict[StageName, float]:
    seconds: dict[StageName, float] = {}
    for stage in work.plan:
        samples = [
            (_handled(stage, past_job.work, past), past_job.seconds[stage])
            for past_job in past
            if stage in past_job.seconds
        ]
        if samples:
            seconds[stage] = _fitted(samples, _handled(stage, work, past))
    return seconds


def usual_memory_bytes(shape: ModelShape) -> int:
    """Memory of the stage that takes most where nothing was measured: imports, and three times the largest tensor.

    In float32, as stages hold it; the largest is taken to be the embedding. The rule is that of ``docs/sizing.md``.
    """
    return _IMPORTS_BYTES + 3 * 4 * shape.vocabulary * shape.embedding_length


def _memory(work: Workload, past: Sequence[_Past]) -> dict[StageName, int]:
    """The most that a job of about this size had: memory goes by the largest tensor, not in proportion to the model."""
    low, high = work.model_bytes / _ALIKE, work.model_bytes * _ALIKE
    alike = [past_job for past_job in past if low <= past_job.work.model_bytes <= high]
    peaks = {stage: [past_job.memory[stage] for past_job in alike if stage in past_job.memory] for stage in work.plan}
    return {stage: max(values) for stage, values in peaks.items() if values}


def _handled(stage: StageName, work: Workload, past: Sequence[_Past]) -> float:
    """What a stage's time is in proportion to: bytes it reads or writes; for quantize, weighed by type."""
    if stage in (StageName.PREPARE, StageName.EXPORT_LORA):
        return 0.0
    if stage is StageName.CONVERT and work.unwritten:
        return 0.0
    if stage in (StageName.VERIFY, StageName.PUBLISH):
        return float(work.output_bytes)
    if stage is StageName.QUANTIZE:
        return work.model_bytes * sum(_weight(quant, past) for quant in work.quant_types)
    return float(work.model_bytes)


def _weight(quant: str, past: Sequence[_Past]) -> float:
    """Seconds a byte for one type: the median over jobs that made it, each job's time shared among its types."""
    rates = [
        past_job.seconds[StageName.QUANTIZE] / past_job.work.model_bytes / len(past_job.work.quant_types)
        for past_job in past
        if past_job.work.model_bytes and quant in past_job.work.quant_types and StageName.QUANTIZE in past_job.seconds
    ]
    others = [
        past_job.seconds[StageName.QUANTIZE] / past_job.work.model_bytes / len(past_job.work.quant_types)
        for past_job in past
        if past_job.work.model_bytes and past_job.work.quant_types and StageName.QUANTIZE in past_job.seconds
    ]
    return median(rates or others or [1.0])


def _fitted(samples: Sequence[tuple[float, float]], size: float) -> float:
    """Seconds at a size, from a line through samples that leaves the least relative error; neither part is negative."""
    weights = [1 / max(seconds, _LEAST_S) ** 2 for _, seconds in samples]
    total = sum(weights)
    mean_size = sum(w * x for w, (x, _) in zip(weights, samples, strict=True)) / total
    mean_s = sum(w * y for w, (_, y) in zip(weights, samples, strict=True)) / total
    spread = sum(w * (x - mean_size) ** 2 for w, (x, _) in zip(weights, samples, strict=True))
    joint = sum(w * (x - mean_size) * (y - mean_s) for w, (x, y) in zip(weights, samples, strict=True))
    if spread <= 1e-9 * total * max(mean_size, 1.0) ** 2:
        # all of one size: in proportion, as far as that goes
        return mean_s * (size / mean_size if mean_size > 0 and size > mean_size else 1.0)
    slope = max(0.0, joint / spread)
    start = mean_s - slope * mean_size
    if start < 0:
        return mean_s / mean_size * size if mean_size else mean_s
    return start + slope * size


def _off_by(past: Sequence[_Past]) -> float | None:
    """How far off forecasts of the newest jobs would have been, each made from the jobs before it."""
    errors = []
    for index, past_job in enumerate(past[:_TESTED]):
        told, took = _seconds(past_job.work, past[index + 1 :]), sum(past_job.seconds.values())
        if len(told) == len(past_job.seconds) and took > 0:
            errors.append(abs(sum(told.values()) - took) / took)
    return median(errors) if len(errors) >= 3 else None

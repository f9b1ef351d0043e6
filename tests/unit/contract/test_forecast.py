"""Forecasts by jobs that ran before."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from api_client.contract.artifacts import FILE_SIZE_FACT
from api_client.contract.forecast import MemoryNeed, Workload, forecast, usual_memory_bytes, workload_of
from api_client.contract.job import (
    PEAK_MEMORY_FACT,
    Artifact,
    ArtifactKind,
    Attempt,
    AttemptOutcome,
    Job,
    JobState,
    Stage,
    StageName,
)
from api_client.contract.plan import plan_stages
from api_client.contract.recommend import ModelShape
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request

START = datetime(2026, 11, 29, tzinfo=UTC)
RATES = {"Q4_K_M": 2e-9, "IQ4_XS": 30e-9}


def true_seconds(stage: StageName, size: int, types: tuple[str, ...]) -> float:
    """A machine that takes a second for each stage and so many for each byte."""
    if stage is StageName.QUANTIZE:
        return 1 + size * sum(RATES[one] for one in types)
    return 1.0 if stage is StageName.PREPARE else 1 + size * 4e-9


def ran(
    size: int,
    *types: str,
    host: str = "here",
    noise: float = 0.0,
    state: JobState = JobState.SUCCEEDED,
    peak: object = None,
) -> Job:
    request, options = resolve_request(
        PackagingRequest(base_model="/b", checkpoint="/r/checkpoint-1", output_dir="/o", quant_types=types)
    )
    plan, dice = plan_stages(request, options), random.Random(size)
    stages = []
    for name in plan:
        made: dict[StageName, list[tuple[ArtifactKind, str | None]]] = {
            StageName.CONVERT: [(ArtifactKind.GGUF, None)],
            StageName.QUANTIZE: [(ArtifactKind.QUANTIZED, t) for t in types],
        }
        artifacts = [
            Artifact(name=f"{t}.gguf", path=f"/o/{t}.gguf", kind=kind, size_bytes=size, sha256="0" * 64, quant_type=t)
            for kind, t in made.get(name, [])
        ]
        seconds = true_seconds(name, size, types) * (1 + noise * dice.uniform(-1, 1))
        attempt = Attempt(
            number=1,
            worker=f"{host}-77-abcd",
            started_at=START,
            finished_at=START + timedelta(seconds=seconds),
            outcome=AttemptOutcome.SUCCEEDED,
        )
        facts = {} if peak is None else {PEAK_MEMORY_FACT: peak}
        stages.append(Stage(name=name, attempts=(attempt,), artifacts=tuple(artifacts), facts=facts))
    return Job(id="j", state=state, request=request, options=options, plan=plan, stages=tuple(stages), created_at=START)


def work(size: int, *types: str) -> Workload:
    return Workload(ran(size, *types).plan, size, size * (1 + len(types)), types)


def test_a_job_like_those_before_takes_what_they_took() -> None:
    past = [ran(size, kind, noise=0.1) for size in (10**8, 10**9, 4 * 10**9) for kind in RATES for _ in range(3)]
    for size, kind in ((2 * 10**9, "Q4_K_M"), (3 * 10**8, "IQ4_XS"), (8 * 10**9, "Q4_K_M")):
        told = forecast(work(size, kind), past, "here")
        true = sum(true_seconds(stage, size, (kind,)) for stage in told.seconds)
        assert told.total_s == pytest.approx(true, rel=0.35), (size, kind)
    assert told.jobs == len(past)
    assert told.off_by is not None
    assert told.off_by < 0.35


def test_types_are_weighed_by_what_they_cost() -> None:
    past = [ran(10**9, kind) for kind in RATES for _ in range(3)]
    fast, slow = (forecast(work(10**9, kind), past, "here").seconds[StageName.QUANTIZE] for kind in RATES)
    assert slow > 5 * fast


def test_only_what_succeeded_on_this_host_counts() -> None:
    past = [ran(10**9, "Q4_K_M", host="there"), ran(10**9, "Q4_K_M", state=JobState.FAILED)]
    told = forecast(work(10**9, "Q4_K_M"), past, "here")
    assert (told.jobs, dict(told.seconds), told.off_by) == (0, {}, None)
    assert forecast(work(10**9, "Q4_K_M"), past, None).jobs == 1


def test_one_job_of_another_size_is_a_beginning() -> None:
    told = forecast(work(4 * 10**9, "Q4_K_M"), [ran(10**9, "Q4_K_M")], "here")
    assert told.seconds[StageName.CONVERT] == pytest.approx(20, rel=0.01), "in proportion"
    small = forecast(work(10**6, "Q4_K_M"), [ran(10**9, "Q4_K_M")], "here")
    assert small.seconds[StageName.CONVERT] <= 5, "never less than nothing is known of, never more than it took"


def test_where_no_unquantized_file_is_written_the_size_of_the_model_is_known_all_the_same() -> None:
    """Convert plans it alone: it takes no longer for a larger model, while quantize does."""
    past = [without_its_file(ran(size, "Q4_K_M")) for size in (10**8, 10**9, 4 * 10**9)]
    assert [workload_of(job) for job in past[:1]] == [Workload(past[0].plan, 10**8, 10**8, ("Q4_K_M",), unwritten=True)]
    small, large = (
        forecast(Workload(past[0].plan, size, size, ("Q4_K_M",), unwritten=True), past, "here").seconds
        for size in (10**9, 8 * 10**9)
    )
    assert large[StageName.CONVERT] == small[StageName.CONVERT]
    assert large[StageName.QUANTIZE] > 4 * small[StageName.QUANTIZE]


def without_its_file(job: Job) -> Job:
    """The same job, whose convert left the layout of its file."""

    def laid_out(artifact: Artifact) -> Artifact:
        facts = {FILE_SIZE_FACT: artifact.size_bytes}
        return artifact.model_copy(update={"kind": ArtifactKind.LAYOUT, "size_bytes": 5000, "facts": facts})

    def stage_of(stage: Stage) -> Stage:
        if stage.name is not StageName.CONVERT:
            return stage
        return stage.model_copy(update={"artifacts": tuple(map(laid_out, stage.artifacts))})

    return job.model_copy(update={"stages": tuple(map(stage_of, job.stages))})


def test_memory_is_what_jobs_of_about_this_size_had() -> None:
    past = [ran(size, "Q4_K_M", peak=peak) for size, peak in ((10**9, 900), (15 * 10**8, 1000), (10**10, 5000))]
    told = forecast(work(12 * 10**8, "Q4_K_M"), past, "here")
    assert set(told.memory_bytes.values()) == {1000}, "a model of ten times the size says nothing of this one"
    assert MemoryNeed.of(told, 77, 10**6) == MemoryNeed(1000, True, 10**6)
    unlike = forecast(work(10**12, "Q4_K_M"), past, "here")
    assert unlike.memory_bytes == {}
    assert MemoryNeed.of(unlike, 77, 10**6) == MemoryNeed(77, False, 10**6)


@pytest.mark.parametrize("peak", ["much", -1, True, 1.5])
def test_a_record_of_memory_that_nobody_can_have_written_counts_for_nothing(peak: object) -> None:
    assert forecast(work(10**9, "Q4_K_M"), [ran(10**9, "Q4_K_M", peak=peak)], "here").memory_bytes == {}


def test_the_usual_memory_is_what_the_page_on_sizing_says() -> None:
    llama_8b = ModelShape(
        architecture="llama",
        kv_heads=(8,) * 32,
        key_length=128,
        value_length=128,
        embedding_length=4096,
        vocabulary=128_256,
        context_length=8192,
    )
    assert usual_memory_bytes(llama_8b) == pytest.approx(7e9, rel=0.1)

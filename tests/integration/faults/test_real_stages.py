"""The real stages on a tiny model: the process of each is killed in its work, and the outputs are the same bytes."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import psutil
import pytest

from api_client import AttemptOutcome, Job, JobState, StageName
from tests.integration.harness import REAL_STAGES, Installation, Worker, eventually
from tests.tiny import tiny_base, tiny_checkpoint

REAL = REAL_STAGES | {
    "verify_load": False,
    "max_crashes": 50,  # Several of the killers below may hit one stage.
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("model")
    base = tiny_base(directory / "base")
    return {"base_model": str(base), "checkpoint": str(tiny_checkpoint(base, directory / "run"))}


def digests(job: Job) -> dict[str, str]:
    return {artifact.name: artifact.sha256 for artifact in job.outputs if artifact.name.endswith(".gguf")}


def names(job: Job) -> set[str]:
    return {path.name for path in Path(str(job.request.output_dir)).iterdir()}


def kill_stage(service: Installation, worker: Worker, job_id: str, stage: str) -> None:
    """Kill what runs once a stage's first attempt has begun: its process, or where it was quick, the next one's."""

    def running() -> list[psutil.Process]:
        if service.client.get(job_id).stage(StageName(stage)).attempt == 0:
            return []
        with contextlib.suppress(psutil.Error):
            server = next(
                p for p in psutil.Process(worker.pid).children() if "multiprocessing.forkserver" in str(p.cmdline())
            )
            return list[psutil.Process](server.children())
        return []

    for process in eventually(running, f"{stage} runs", 60):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)


def killed(service: Installation, worker: Worker, job: Job) -> Job:
    """A job that ended well although every stage's process was killed."""
    plan = [stage.name.value for stage in job.stages]
    killers = [threading.Thread(target=kill_stage, args=(service, worker, job.id, stage)) for stage in plan]
    for killer in killers:
        killer.start()
    job = service.wait(job, 120)
    for killer in killers:
        killer.join()
    assert job.state is JobState.SUCCEEDED, job.error
    died = [s.name.value for s in job.stages if AttemptOutcome.CRASHED in {a.outcome for a in s.attempts}]
    assert len(died) >= 3, f"stages whose process was killed in time: {died}"
    return job


def test_outputs_are_the_same_bytes_whoever_died(service: Installation, model: dict[str, str]) -> None:
    worker = service.start_worker(**REAL)
    wanted = {"quant_types": ["Q8_0", "Q4_K_M"], **model}
    undisturbed = service.wait(service.submit("calm", **wanted), 120)
    assert undisturbed.state is JobState.SUCCEEDED, undisturbed.error
    job = killed(service, worker, service.submit("killed", **wanted))
    assert digests(job) == digests(undisturbed)
    assert len(digests(job)) == 3
    eventually(lambda: names(job) == names(undisturbed), "the same files and nothing else")
    # quantized of the base model itself, since nobody wants the unquantized file
    job = killed(service, worker, service.submit("unkept", keep_unquantized=False, **wanted))
    left_out = {"merged_model.gguf"}
    assert digests(job).items() == {item for item in digests(undisturbed).items() if item[0] not in left_out}
    eventually(lambda: names(job) == names(undisturbed) - left_out, "the same files and nothing else")


def test_a_quantize_replay_makes_only_the_types_that_are_missing(service: Installation, model: dict[str, str]) -> None:
    service.start_worker(**REAL)
    first = service.wait(service.submit(quant_types=["Q8_0", "Q4_0", "Q4_K_M"], **model), 120)
    assert first.state is JobState.SUCCEEDED, first.error

    def scratch_is_gone() -> bool:
        return not service.path(f".trainpack-{first.id}").exists()

    def replayed(stage: str) -> Job:
        eventually(scratch_is_gone, "scratch is gone: nothing but the outputs can be taken over")
        service.client.replay(first.id, from_stage=stage)
        job = service.wait(first, 120)
        assert job.state is JobState.SUCCEEDED, job.error
        assert digests(job) == digests(first)
        return job

    assert replayed("quantize").stage(StageName.QUANTIZE).facts["made"] == []
    service.path("merged_model-Q4_0.gguf").write_bytes(b"changed")
    service.path("merged_model-Q8_0.gguf").unlink()
    assert replayed("quantize").stage(StageName.QUANTIZE).facts["made"] == ["Q8_0", "Q4_0"]
    service.path("merged_model-Q4_0.gguf").unlink()
    job = replayed("verify")
    assert job.stage(StageName.QUANTIZE).facts["made"] == ["Q4_0"]
    assert job.stage(StageName.CONVERT).attempt == 1, "its file was taken from the output directory"


def test_without_an_unquantized_file_a_replay_makes_what_is_missing_of_the_base_model(
    service: Installation, model: dict[str, str]
) -> None:
    service.start_worker(**REAL)
    first = service.wait(service.submit(quant_types=["Q8_0", "Q4_0"], keep_unquantized=False, **model), 120)
    assert first.state is JobState.SUCCEEDED, first.error
    eventually(lambda: not service.path(f".trainpack-{first.id}").exists(), "scratch is gone")
    service.path("merged_model-Q4_0.gguf").unlink()
    service.client.replay(first.id, from_stage="quantize")
    job = service.wait(first, 120)
    assert job.state is JobState.SUCCEEDED, job.error
    assert digests(job) == digests(first)
    assert job.stage(StageName.QUANTIZE).facts["made"] == ["Q4_0"]
    assert job.stage(StageName.QUANTIZE).facts["taken_over"] == ["Q8_0"]

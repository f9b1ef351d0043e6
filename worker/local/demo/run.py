"""The demo: train a small LoRA on one new fact, package it through the real service, ask before and after."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from api_client.client import PackagingClient
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, Job, JobState
from api_client.contract.request import PackagingRequest
from config.roots import Roots
from worker.local.demo.base_model import ensure_base_model
from worker.local.demo.training import FACT, QUESTION, STEPS
from worker.models.verify.ask import Question
from worker.models.verify.load import generate
from worker.storage.paths import ensure_output_dir

Say = Callable[[str], None]
MAX_ANSWER_TOKENS = 40


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    job: Job
    question: str
    base_answer: str
    packaged_answer: str

    @property
    def taught(self) -> bool:
        """Whether the packaged model knows the fact and the base model does not."""
        return FACT in self.packaged_answer and FACT not in self.base_answer


def prepare_run(cache_dir: Path, say: Say) -> tuple[Path, Path]:
    """Base model and finished training run, made on the first call and cached.

    Returns:
        The base model's directory and the run's output directory.

    Raises:
        PackagingError: ``output_dir_not_writable``, ``download_failed``.
    """
    ensure_output_dir(cache_dir, Roots.anywhere())
    base = ensure_base_model(cache_dir, say)
    run = cache_dir / "run"
    done = run / ".trained"
    if not done.is_file():
        say(f"Training a LoRA for {STEPS} steps on the CPU (about two minutes)")
        _train(base, run)
        done.touch()
    return base, run


def package_and_ask(
    client: PackagingClient, cache_dir: Path, output_dir: Path, watch: Callable[[str], Job], say: Say
) -> DemoResult:
    """Package the run with the default template and ask the base model and the packaged one the same question.

    Args:
        client: Client of a running service.
        cache_dir: As for :func:`prepare_run`.
        output_dir: Where the outputs go; those of an earlier demo are replaced.
        watch: Shows a job until it ends and returns it.
        say: Receives a line about each slow step.

    Raises:
        PackagingError: ``job_failed``, ``job_cancelled`` or what a step raises.
    """
    base, run = prepare_run(cache_dir, say)
    request = PackagingRequest(
        base_model=str(base),
        checkpoint=str(run / f"checkpoint-{STEPS}"),
        output_dir=str(output_dir),
        overwrite=True,
        evaluation={"questions": {QUESTION: FACT}},
    )
    job = watch(client.submit(request).id)
    if job.state is JobState.CANCELLED:
        raise PackagingError(ErrorCode.JOB_CANCELLED, f"job {job.id} was cancelled before the demo could ask its model")
    if (failure := job.failure) is not None:
        raise PackagingError.of(failure)
    packaged = next((a for a in job.outputs if a.kind is ArtifactKind.QUANTIZED), None)
    if packaged is None:
        raise PackagingError(ErrorCode.JOB_FAILED, f"job {job.id} ended {job.state.value} without a quantized file")
    say(f'Asking the base model, too: "{QUESTION}"')
    return DemoResult(job, QUESTION, _answer(base_gguf(cache_dir)), _packaged_answer(job, packaged))


def base_gguf(cache_dir: Path) -> Path:
    """The base model's own quantized GGUF, as the package brings it."""
    return next((cache_dir / "packages").rglob("*.gguf"))


def published_path(artifact: Artifact) -> Path:
    """Where a published artifact lies."""
    return Path(artifact.path)


def _packaged_answer(job: Job, packaged: Artifact) -> str:
    """What the job itself was told; asked again where its report has no answer."""
    asked = job.report.questions if job.report is not None else ()
    told = (answer.text for question in asked for answer in question.answers if answer.by == packaged.name)
    return next(told, None) or _answer(published_path(packaged))


def _answer(model: Path) -> str:
    question = Question(str(model), prompt=QUESTION, chat=True, max_tokens=MAX_ANSWER_TOKENS)
    return generate(question).strip()


def _train(base: Path, run: Path) -> None:
    command = [sys.executable, "-P", "-m", "worker.local.demo.training", str(base), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-20:]
        raise PackagingError(
            ErrorCode.INTERNAL_ERROR,
            f"the demo's training failed: {tail[-1] if tail else 'no output'}",
            fields={"output": "\n".join(tail)},
        )

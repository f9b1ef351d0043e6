"""Sensitivity: what each weight means for the model's predictions, or check the file that was given.

Reads the base model, the overlay and the importance matrix; writes ``{stem}.sensitivity.gguf`` to scratch where it
computes, else a copy of the given file. The matrix is not computed again: its sums go into the file, so that another
job can fit other sizes from it without running the model. Finished layers are kept in scratch, and an attempt after a
stop goes on with the next one. Raises ``sensitivity_invalid``, ``calibration_too_short``.
"""

from __future__ import annotations

from pathlib import Path

from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.outputs import SENSITIVITY
from worker.models.imatrix.compute import CalibrationChunks
from worker.models.imatrix.load import read_imatrix
from worker.models.sensitivity.compute import CHUNK_TOKENS, compute_sensitivity
from worker.models.sensitivity.gguf_form import read_sensitivity, write_sensitivity
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_base, job_overlay, keep_given
from worker.stages.run_data import calibration_text

_WORK = "sensitivity"
"""Directory in scratch for the layers' inputs."""


def run(context: StageContext) -> StageResult:
    """Compute or check the sensitivities."""
    given = context.prepared.sensitivity
    path = _kept(context, given) if given is not None else _compute(context)
    artifact = Artifact.of(path, ArtifactKind.SENSITIVITY, facts={"computed": given is None})
    return StageResult((artifact,), {"computed": given is None})


def _kept(context: StageContext, given: Path) -> Path:
    path = keep_given(context, given)
    kept = read_sensitivity(path)
    context.report.log(f"{path.name}: sensitivities from {kept.tokens} tokens of {kept.dataset}")
    return path


def _compute(context: StageContext) -> Path:
    prepared, matrix = context.prepared, context.matrix()
    text = calibration_text(context)
    computed = compute_sensitivity(
        job_base(context),
        job_overlay(context),
        CalibrationChunks(text, prepared.tokenizer_dir, None, CHUNK_TOKENS),
        work_dir=context.scratch / _WORK,
        matrix=read_imatrix(Path(matrix.path)) if matrix is not None else None,
        setting=context.setting("steps"),
    )
    path = context.scratch / context.names.name(SENSITIVITY)
    write_sensitivity(path, computed.sensitivity)
    if computed.forward_only:
        context.report.log(
            f"The model cannot be run backward; errors are weighed by the importance matrix alone: "
            f"{computed.forward_only}",
            level="warning",
        )
    else:
        context.report.log(
            f"Sensitivities from {computed.sensitivity.tokens} tokens of {text.name} on {computed.device}",
            entries=len(computed.sensitivity.entries),
        )
    if computed.left_out:
        context.report.log(
            f"{len(computed.left_out)} weights have no sensitivity and keep the type that a stock mixture gives them",
            level="warning",
            left_out=list(computed.left_out),
        )
    return path

"""Importance matrix: compute it from calibration text, or check the one that was given.

Reads the base model, the overlay and the header of the unquantized GGUF, or its layout; writes
``{stem}.imatrix.gguf`` to scratch where it computes, else a copy of the given file. Raises ``imatrix_invalid``,
``imatrix_mismatch``, ``imatrix_required``, ``calibration_too_short``.
"""

from __future__ import annotations

from pathlib import Path

from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.outputs import MATRIX
from api_client.contract.quant_types import QuantType
from worker.models.imatrix.compute import CalibrationChunks, compute_imatrix
from worker.models.imatrix.gguf_form import write_imatrix
from worker.models.imatrix.load import load_imatrix
from worker.models.imatrix.validate import validate_imatrix
from worker.models.mixture.model import model_facts
from worker.models.mixture.policy import choose_mixture
from worker.models.mixture.recipe import Recipe
from worker.models.sensitivity.gguf_form import read_sensitivity
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_base, job_overlay, keep_given
from worker.stages.layout import open_header
from worker.stages.run_data import calibration_text


def run(context: StageContext) -> StageResult:
    """Compute or check the matrix."""
    given = context.prepared.imatrix.path
    path = keep_given(context, given) if given is not None else _taken_over(context) or _compute(context)
    _validate(context, path)
    artifact = Artifact.of(path, ArtifactKind.IMATRIX, facts={"computed": given is None})
    return StageResult((artifact,), {"computed": given is None})


def _taken_over(context: StageContext) -> Path | None:
    """The matrix in a given sensitivity file, where the request asks for no other: the model is not run again."""
    given = context.prepared.sensitivity
    if given is None or context.request.imatrix.mode != "auto":
        return None
    path = context.scratch / context.names.name(MATRIX)
    write_imatrix(path, read_sensitivity(given).matrix())
    context.report.log(f"The importance matrix is that in {given.name}")
    return path


def _compute(context: StageContext) -> Path:
    prepared = context.prepared
    text = calibration_text(context)
    computed = compute_imatrix(
        job_base(context),
        job_overlay(context),
        CalibrationChunks(text, prepared.tokenizer_dir, context.request.imatrix.chunks),
        setting=context.setting("chunks"),
    )
    path = context.scratch / context.names.name(MATRIX)
    write_imatrix(path, computed.sums)
    context.report.log(
        f"Importance matrix from {computed.token_count} tokens of {text.name} on {computed.device}",
        entries=len(computed.sums.entries),
    )
    if computed.left_out or computed.unreached:
        context.report.log(
            f"{len(computed.left_out)} weights have no entry, {len(computed.unreached)} have experts no token reached",
            level="warning",
            left_out=list(computed.left_out),
            unreached=dict(computed.unreached),
        )
    return path


def _validate(context: StageContext, path: Path) -> None:
    matrix = load_imatrix(path)
    with open_header(context) as file:
        model, recipe = model_facts(file.metadata), Recipe.of(context.request.recipe)
        needs = [
            need
            for quant in context.options.quant_types
            if isinstance(quant, QuantType)  # a fit chooses among what the matrix has
            for need in choose_mixture(model, file.tensors, quant, has_imatrix=True, recipe=recipe).imatrix_needs
        ]
        coverage = validate_imatrix(matrix, model.architecture, file.tensors, needs)
    context.report.log(
        f"{path.name} fits the model: {len(coverage.covered)} tensors with weights, {len(coverage.uncovered)} without",
        unknown=len(coverage.unknown),
    )

"""Convert: base model and overlay to one unquantized GGUF, tensor by tensor, no merged model anywhere.

Reads the base model and ``overlay.safetensors``; writes the GGUF to scratch, of a vision or audio model the projector
first. Where an attempt stopped or died, the next one goes on. Raises ``unsupported_architecture``,
``tokenizer_unsupported``, ``vocabulary_mismatch``, ``disk_space_insufficient``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from api_client.contract.outputs import PROJECTOR, UNQUANTIZED
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import ConvertResult, convert
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_metadata, job_overlay, job_tokenizer
from worker.stages.projector import projector_dtype


def run(context: StageContext) -> StageResult:
    """Convert."""
    job = partial(
        convert,
        context.prepared.base_dir,
        overlay=job_overlay(context),
        tokenizer=job_tokenizer(context),
        setting=context.setting(),
    )
    own, files = Naming(job_metadata(context)), context.scratch
    projector = None
    if context.prepared.has_projector:
        projector = job(
            files / context.names.name(PROJECTOR),
            gguf_dtype=projector_dtype(context.request),
            naming=replace(own, part=ModelPart.PROJECTOR),
        )
    result = job(
        files / context.names.name(UNQUANTIZED),
        gguf_dtype=context.request.gguf_dtype,
        naming=replace(own, projector_left_out=projector.left_out if projector is not None else None),
    )
    artifacts = [_artifact(context, result, ModelPart.MODEL)]
    artifacts += [_artifact(context, projector, ModelPart.PROJECTOR)] if projector is not None else []
    return StageResult(
        tuple(artifacts),
        {
            "architecture": result.architecture,
            "parameters": result.parameters,
            "converter": result.converter,
            "resumed_bytes": result.resumed_bytes,
        },
    )


def _artifact(context: StageContext, result: ConvertResult, part: ModelPart) -> Artifact:
    """Say what was made, and describe it."""
    counts = dict(result.tensor_types)
    if result.resumed_bytes:
        context.report.log(f"Went on from {result.resumed_bytes} bytes that an earlier attempt had written")
    context.report.log(
        f"{result.path.name}: {sum(counts.values())} tensors, {result.parameters:,} parameters", tensor_types=counts
    )
    for note in result.notes:
        context.report.log(note, level="warning")
    return Artifact.of(
        result.path,
        ArtifactKind.GGUF,
        sha256=result.sha256,
        part=part,
        facts={"mixture": counts, "parameters": result.parameters, "file_type": result.file_type},
    )

"""Convert: base model and overlay to one unquantized GGUF, tensor by tensor, no merged model anywhere.

Reads the base model and ``overlay.safetensors``; writes the GGUF to scratch, of a vision or audio model the projector
first. Where an attempt stopped or died, the next
one goes on. Raises ``unsupported_architecture``, ``tokenizer_unsupported``, ``vocabulary_mismatch``,
``disk_space_insufficient``.
"""

from __future__ import annotations

from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from api_client.contract.outputs import PROJECTOR, UNQUANTIZED, OutputSpec
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import ConvertResult, convert
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_metadata, job_overlay, job_tokenizer
from worker.stages.projector import projector_dtype


def run(context: StageContext) -> StageResult:
    """Convert."""
    projector = _projector(context) if context.prepared.has_projector else None
    result = _converted(
        context,
        UNQUANTIZED,
        gguf_dtype=context.request.gguf_dtype,
        projector_left_out=projector.left_out if projector is not None else None,
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


def _projector(context: StageContext) -> ConvertResult:
    return _converted(context, PROJECTOR, part=ModelPart.PROJECTOR, gguf_dtype=projector_dtype(context.request))


def _converted(
    context: StageContext,
    spec: OutputSpec,
    *,
    gguf_dtype: str,
    part: ModelPart = ModelPart.MODEL,
    projector_left_out: tuple[str, ...] | None = None,
) -> ConvertResult:
    return convert(
        context.prepared.base_dir,
        context.scratch / context.names.name(spec),
        overlay=job_overlay(context),
        tokenizer=job_tokenizer(context),
        gguf_dtype=gguf_dtype,
        naming=Naming(job_metadata(context), part=part, projector_left_out=projector_left_out),
        setting=context.setting(),
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

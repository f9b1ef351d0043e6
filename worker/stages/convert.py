"""Convert: base model and overlay to one unquantized GGUF, tensor by tensor, no merged model anywhere.

Reads the base model and ``overlay.safetensors``; writes the GGUF to scratch. Where an attempt stopped or died, the next
one goes on. Raises ``unsupported_architecture``, ``tokenizer_unsupported``, ``vocabulary_mismatch``,
``disk_space_insufficient``.
"""

from __future__ import annotations

from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.outputs import UNQUANTIZED
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_metadata, job_overlay, job_tokenizer


def run(context: StageContext) -> StageResult:
    """Convert."""
    prepared = context.prepared
    out = context.scratch / context.names.name(UNQUANTIZED)
    result = convert(
        prepared.base_dir,
        out,
        overlay=job_overlay(context),
        tokenizer=job_tokenizer(context),
        gguf_dtype=context.request.gguf_dtype,
        naming=Naming(job_metadata(context)),
        setting=context.setting(),
    )
    counts = dict(result.tensor_types)
    if result.resumed_bytes:
        context.report.log(f"Went on from {result.resumed_bytes} bytes that an earlier attempt had written")
    context.report.log(
        f"{out.name}: {sum(counts.values())} tensors, {result.parameters:,} parameters", tensor_types=counts
    )
    for note in result.notes:
        context.report.log(note, level="warning")
    artifact = Artifact.of(
        result.path,
        ArtifactKind.GGUF,
        sha256=result.sha256,
        facts={"mixture": counts, "parameters": result.parameters, "file_type": result.file_type},
    )
    return StageResult(
        (artifact,),
        {
            "architecture": result.architecture,
            "parameters": result.parameters,
            "converter": result.converter,
            "resumed_bytes": result.resumed_bytes,
        },
    )

"""Convert: base model and overlay to one unquantized GGUF, tensor by tensor, no merged model anywhere.

Reads the base model and ``overlay.safetensors``; writes the GGUF to scratch, of a vision or audio model the projector
first. Where nobody wants the GGUF it is planned alone, and its header left for later stages (``layout``). Where types
can be made at once they are, in the same pass (``ahead``). Where an attempt stopped or died, the next one goes on.
Raises ``unsupported_architecture``, ``tokenizer_unsupported``, ``vocabulary_mismatch``, ``disk_space_insufficient``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from api_client.contract.outputs import PROJECTOR, UNQUANTIZED
from api_client.contract.rules import writes_unquantized
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import (
    Conversion,
    ConvertResult,
    convert,
    describe_result,
    open_conversion,
    write_conversion,
)
from worker.stages.ahead import works_ahead, write_and_quantize
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_metadata, job_overlay, job_source, job_tokenizer
from worker.stages.layout import keep_layout
from worker.stages.projector import projector_dtype


def run(context: StageContext) -> StageResult:
    """Convert."""
    overlay, tokenizer = job_overlay(context), job_tokenizer(context)
    setting, source = context.setting(), job_source(context)
    own, files = Naming(job_metadata(context)), context.scratch
    projector = None
    if context.prepared.has_projector:
        projector = convert(
            source,
            files / context.names.name(PROJECTOR),
            overlay=overlay,
            tokenizer=tokenizer,
            gguf_dtype=projector_dtype(context.request),
            naming=replace(own, part=ModelPart.PROJECTOR),
            setting=setting,
        )
    artifacts = [_artifact(context, projector, ModelPart.PROJECTOR)] if projector is not None else []
    conversion = open_conversion(
        source,
        overlay=overlay,
        tokenizer=tokenizer,
        gguf_dtype=context.request.gguf_dtype,
        naming=replace(own, projector_left_out=projector.left_out if projector is not None else None),
        setting=setting,
    )
    plan, upstream = conversion.plan, conversion.upstream
    if not writes_unquantized(context.request, context.options):
        facts = _facts(plan.architecture, plan.parameters, upstream.version, 0)
        return StageResult((_layout(context, conversion), *artifacts), facts)
    path = files / context.names.name(UNQUANTIZED)
    written = write_and_quantize(context, conversion, path) if works_ahead(context) else None
    result = describe_result(plan, written or write_conversion(conversion, path, setting), upstream)
    return StageResult(
        (_artifact(context, result, ModelPart.MODEL), *artifacts),
        _facts(result.architecture, result.parameters, result.converter, result.resumed_bytes),
    )


def _facts(architecture: str, parameters: int, converter: str, resumed_bytes: int) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "parameters": parameters,
        "converter": converter,
        "resumed_bytes": resumed_bytes,
    }


def _layout(context: StageContext, conversion: Conversion) -> Artifact:
    """Say what is not made, and leave its header."""
    plan = conversion.plan
    context.report.log(
        f"{context.names.name(UNQUANTIZED)} is not kept and not written: {len(plan.tensors)} tensors, "
        f"{plan.parameters:,} parameters, made as they are quantized",
        tensor_types=dict(Counter(tensor.type for tensor in plan.tensors)),
    )
    for note in plan.notes:
        context.report.log(note, level="warning")
    return keep_layout(context, conversion)


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

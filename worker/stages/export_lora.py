"""Export LoRA: the adapter alone as a GGUF that llama.cpp applies to the base model at run time.

Reads the adapter and the base model's headers; writes ``{checkpoint_name}-lora.gguf`` to scratch. Safe to repeat.
Raises ``adapter_unsupported`` for what such a file cannot express, and as merge.
"""

from __future__ import annotations

from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.outputs import ADAPTER
from worker.models.adapters.adapter import open_adapter
from worker.models.adapters.export import invocation_tokens, normalise_for_export
from worker.models.checkpoint import open_base_model
from worker.models.convert.lora import export_lora
from worker.models.convert.metadata import Naming
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_metadata


def run(context: StageContext) -> StageResult:
    """Export the adapter."""
    prepared = context.prepared
    roots = context.settings.allowed_roots
    base = open_base_model(prepared.base_dir, allowed_roots=roots)
    adapter = open_adapter(prepared.adapter, allowed_roots=roots)
    pairs = normalise_for_export(adapter, base)
    tokens = invocation_tokens(adapter)
    out = context.scratch / context.names.name(ADAPTER)
    result = export_lora(
        pairs,
        base,
        out,
        gguf_dtype=adapter_dtype(context.request.gguf_dtype),
        naming=Naming(
            job_metadata(context),
            context.request.model_name or prepared.checkpoint_name or prepared.adapter.name,
        ),
        invocation_tokens=tokens,
        setting=context.setting(),
    )
    ranks = sorted({pair.r for pair in pairs})
    context.report.log(f"{out.name}: {len(pairs)} adapted tensors, rank {', '.join(map(str, ranks))}", ranks=ranks)
    for note in result.notes:
        context.report.log(note, level="warning")
    if tokens:
        context.report.log(f"{out.name} applies after the tokens {', '.join(map(str, tokens))} (aLoRA)", tokens=tokens)
    artifact = Artifact.of(
        result.path,
        ArtifactKind.LORA,
        sha256=result.sha256,
        facts={"mixture": dict(result.tensor_types), "adapted_tensors": len(pairs), "ranks": ranks},
    )
    return StageResult((artifact,), {"architecture": result.architecture, "converter": result.converter})


def adapter_dtype(gguf_dtype: str) -> str:
    """An adapter is small, so ``auto`` keeps it exact."""
    return "f32" if gguf_dtype == "auto" else gguf_dtype

"""Merge: turn the adapter into an overlay, a small file of updates that convert applies tensor by tensor.

Reads the adapter and the base model's headers; writes ``overlay.safetensors`` to scratch. Safe to repeat.
Raises ``adapter_mismatch``, ``adapter_unsupported``, ``adapter_not_finite``, ``adapter_invalid``.
"""

from __future__ import annotations

from pathlib import Path

from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.outputs import MERGED_DIRECTORY
from worker.models.adapters.adapter import open_adapter
from worker.models.adapters.build import build_overlay
from worker.models.adapters.overlay import Overlay
from worker.models.adapters.updates import Precision
from worker.models.checkpoint import BaseModel, open_base_model
from worker.models.convert.merged import save_merged
from worker.models.convert.upstream import supported_architectures
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_tokenizer

OVERLAY = "overlay.safetensors"


def run(context: StageContext) -> StageResult:
    """Build the overlay."""
    prepared = context.prepared
    roots = context.settings.allowed_roots
    base = open_base_model(prepared.base_dir, allowed_roots=roots)
    adapter = open_adapter(prepared.adapter, allowed_roots=roots)
    summary = build_overlay(
        adapter,
        base,
        context.scratch / OVERLAY,
        precision=overlay_precision(context.request.gguf_dtype),
        report=context.setting("modules").report,
        classes=supported_architectures(context.settings.llama_cpp_dir),
    )
    for note in summary.notes:
        context.report.log(note)
    context.report.log(
        f"The adapter changes {summary.touched} of {len(base.tensors)} tensors", steps=dict(summary.steps)
    )
    artifact = Artifact.of(summary.path, ArtifactKind.OVERLAY)
    merged = _save_merged(context, base, summary.path) if context.request.save_merged else ()
    return StageResult(
        (artifact, *merged),
        {
            "touched": summary.touched,
            "added": list(summary.added),
            "steps": dict(summary.steps),
            "config_changes": dict(summary.config_changes),
        },
    )


def _save_merged(context: StageContext, base: BaseModel, overlay: Path) -> tuple[Artifact, ...]:
    """Stream the merged Hugging Face checkpoint out, in the base dtype."""
    directory = context.scratch / context.names.name(MERGED_DIRECTORY)
    save_merged(
        base,
        Overlay.load(overlay),
        directory,
        tokenizer=job_tokenizer(context),
        setting=context.setting(),
    )
    files = sorted(path for path in directory.iterdir() if path.is_file())
    context.report.log(f"{directory.name}: the merged model in {len(files)} files")
    return tuple(Artifact.of(path, ArtifactKind.MERGED_MODEL, name=f"{directory.name}/{path.name}") for path in files)


def overlay_precision(gguf_dtype: str) -> Precision:
    """``base`` rounds as PEFT does; a chosen f32 or f16 keeps the float32 sum and rounds once, in convert."""
    return "f32" if gguf_dtype in ("f32", "f16") else "base"

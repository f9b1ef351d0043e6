"""Merge: turn the adapter into an overlay, a small file of updates that convert applies tensor by tensor.

Reads the adapter and the base model's headers (and some weights, where the adapter was trained on 4-bit ones); writes
``overlay.safetensors`` to scratch. Safe to repeat.
Raises ``adapter_mismatch``, ``adapter_unsupported``, ``adapter_not_finite``, ``adapter_invalid``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.outputs import MERGED_DIRECTORY
from worker.models.adapters.adapter import Adapter, open_adapter
from worker.models.adapters.base_error import WARNING_RATIO, measure_base_error
from worker.models.adapters.build import build_overlay
from worker.models.adapters.overlay import Overlay
from worker.models.adapters.updates import Precision
from worker.models.checkpoint import BaseModel
from worker.models.convert.merged import save_merged
from worker.models.convert.upstream import supported_architectures
from worker.models.rundata.four_bit import four_bit_training
from worker.stages.context import StageContext, StageResult
from worker.stages.inputs import job_base, job_tokenizer
from worker.stages.run_data import run_directories

OVERLAY = "overlay.safetensors"


def run(context: StageContext) -> StageResult:
    """Build the overlay."""
    prepared = context.prepared
    roots = context.settings.allowed_roots
    base = job_base(context)
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
    trained = _trained_in_four_bits(context, adapter, base, summary.path)
    artifact = Artifact.of(summary.path, ArtifactKind.OVERLAY)
    merged = _save_merged(context, base, summary.path) if context.request.save_merged else ()
    return StageResult(
        (artifact, *merged),
        {
            "touched": summary.touched,
            "added": list(summary.added),
            "steps": dict(summary.steps),
            "config_changes": dict(summary.config_changes),
            **({"four_bit_training": trained} if trained else {}),
        },
    )


def _trained_in_four_bits(context: StageContext, adapter: Adapter, base: BaseModel, overlay: Path) -> dict[str, Any]:
    """Of an adapter trained on 4-bit weights: how far the base it is merged into lies from those; else nothing."""
    checkpoint = context.prepared.checkpoint_dir
    directories = run_directories(context, checkpoint) if checkpoint is not None else []
    training = four_bit_training(adapter.base_name, directories)
    if training is None:
        return {}
    facts: dict[str, Any] = {"type": training.kind, "said_by": training.said_by}
    if base.made_plain_from == "bitsandbytes":
        return facts | {"merged_into": "the same weights"}
    if base.rounded_as is not None:
        return facts | {"merged_into": f"the base rounded as {base.rounded_as}"}
    error = measure_base_error(Overlay.load(overlay), base, training.kind)
    if error is None:
        return facts
    context.report.log(
        f"Trained on {training.kind} weights, by {training.said_by}: the base merged into differs from them by "
        f"{error.ratio:.3g} times what the adapter changes ({error.relative_error:.1%} against "
        f"{error.relative_change:.2%} of the weights, measured on {error.measured} of {error.changed})",
        ratio=error.ratio,
    )
    if error.ratio > WARNING_RATIO:
        context.report.log(
            f"That is more than {WARNING_RATIO:.0f} times: what was learned may not outweigh the change of base; "
            "compare with a merge into the weights that it was trained on (base_precision)",
            level="warning",
            ratio=error.ratio,
        )
    return facts | {
        "base_error_to_change": error.ratio,
        "base_error": error.relative_error,
        "change": error.relative_change,
        "measured": error.measured,
        "changed": error.changed,
    }


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

"""Prepare: fetch and check every input from headers, predict every output, check the place it goes to.

Writes nothing but downloads. Whatever can be known to be wrong is refused here, before any heavy work. Safe to repeat.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from api_client.contract.outputs import (
    MERGED_DIRECTORY,
    PROJECTOR,
    QUANTIZED,
    RECORDS,
    UNQUANTIZED,
    PlannedOutput,
    planned_outputs,
)
from api_client.contract.rules import writes_unquantized
from api_client.words.formatting import format_size
from worker.models.adapters.announced import absent_parts
from worker.models.checkpoint import BaseModel
from worker.models.evaluate.datasets import read_samples
from worker.models.imatrix.calibration import load_calibration
from worker.models.imatrix.load import load_imatrix
from worker.models.questions.files import read_questions
from worker.models.sensitivity.gguf_form import read_sensitivity
from worker.stages.context import StageContext, StageResult
from worker.stages.draft_head import beyond_matrix, report_draft_head
from worker.stages.estimate import SizeEstimate, estimate_sizes
from worker.stages.inputs import JobInputs, fetch_evaluation, fetch_imatrix, fetch_sensitivity, resolve_inputs
from worker.stages.ownership import check_free, check_records_free
from worker.stages.prepared import GivenMatrix, GivenText
from worker.stages.projector import plan_projector
from worker.stages.publish import local_target, upload_destination
from worker.stages.run_data import look_for_run_data
from worker.stages.targets import check_upload_target
from worker.storage.checksums import sha256_file
from worker.storage.paths import check_disk_space, check_output_dir
from worker.storage.s3 import S3Storage

MODEL_BYTES_FACT = "model_bytes"
"""Size of the unquantized file, written or not."""


def run(context: StageContext) -> StageResult:
    """Check the job, and hand over what later stages go by."""
    target = local_target(context)
    if target is not None:
        check_output_dir(target, context.settings.allowed_roots)
    upload_destination(context)  # refuses a bucket that jobs may not write, before anything is fetched
    inputs = resolve_inputs(context)
    _describe(context, inputs)
    projector = plan_projector(context, inputs)
    inputs = replace(inputs, names=replace(inputs.names, has_projector=projector is not None))
    outputs = planned_outputs(context.request, context.options, inputs.names)
    if target is not None:
        check_records_free(context, target)
        # publish looks at every file of a directory by itself
        for output in outputs:
            if output.kind not in RECORDS and output.spec is not MERGED_DIRECTORY:
                check_free(context, target, output.name)
    context.stop_point()
    sizes = estimate_sizes(context, inputs, projector) if context.options.export_gguf else None
    if sizes is not None and sizes.beyond_matrix:
        inputs = replace(inputs, draft_head=beyond_matrix(context, inputs.base, sizes.beyond_matrix))
        sizes = estimate_sizes(context, inputs, projector)
    head = inputs.draft_head
    head_facts = report_draft_head(context, head, sizes.prediction_layers) if head is not None and sizes else {}
    _check_space(context, inputs, sizes)
    _check_storage(context)
    imatrix = fetch_imatrix(context)
    _check_imatrix(imatrix)
    sensitivity = fetch_sensitivity(context)
    if sensitivity is not None:
        read_sensitivity(sensitivity)
    facts = inputs.facts() | {
        "inputs": _fingerprints(inputs),
        "predicted_bytes": _predicted(outputs, sizes),
        **({MODEL_BYTES_FACT: sizes.unquantized_bytes} if sizes is not None else {}),
        **head_facts,
    }
    evaluation = fetch_evaluation(context)
    _check_evaluation(evaluation)
    run_data = look_for_run_data(context, inputs.checkpoint)
    return StageResult(facts=facts, prepared=inputs.handed_over(imatrix, evaluation, sensitivity, run_data))


def _describe(context: StageContext, inputs: JobInputs) -> None:
    base = inputs.base
    context.report.log(
        f"Base model {inputs.base_name}: {inputs.architecture}, {len(base.tensors)} tensors, "
        f"{format_size(base.size_bytes)}",
        base_model=str(base.directory),
    )
    if base.made_plain_from is not None:
        context.report.log(
            f"Its {base.made_plain_from} weights are read as plain {', '.join(sorted(base.made_dtypes()))}, "
            "as transformers makes them"
        )
    if inputs.adapter is not None:
        context.report.log(
            f"Checkpoint {inputs.checkpoint_name}: {inputs.adapter.peft_type} adapter, "
            f"{len(inputs.adapter.tensors)} tensors",
            checkpoint=str(inputs.checkpoint),
        )
        for name in inputs.adapter.left_out:
            context.report.log(f"{name} of the checkpoint is not part of what is packaged", level="warning", file=name)
        for told in absent_parts(inputs.adapter, base.tensors):
            context.report.log(told, level="warning")
        for name in sorted(
            {entry.file_name for key, entry in inputs.adapter.tensors.items() if inputs.adapter.is_beside(key)}
        ):
            context.report.log(
                f"{name} of the checkpoint holds trained weights; they replace the base model's", file=name
            )
    context.report.log(f"Tokenizer from {inputs.tokenizer.directory}", tokenizer=str(inputs.tokenizer.directory))


def _check_space(context: StageContext, inputs: JobInputs, sizes: SizeEstimate | None) -> None:
    """Files are written once, to scratch; publishing links them, or copies them to another disk."""
    adapter_bytes = sum(entry.size_bytes for entry in inputs.adapter.tensors.values()) if inputs.adapter else 0
    written = writes_unquantized(context.request, context.options)
    outputs_bytes = sizes.bytes_of(unquantized=written) if sizes is not None else adapter_bytes
    needs = {context.scratch: outputs_bytes + (adapter_bytes if context.options.merge_lora else 0)}
    if context.request.save_merged:
        needs[context.scratch] += inputs.base.size_bytes
    target = local_target(context)
    if target is not None and not _one_disk(context.scratch, target):
        needs[target] = outputs_bytes
    check_disk_space(needs, reserve_bytes=context.settings.disk_reserve_bytes)
    context.report.log(f"Space: {format_size(sum(needs.values()))} needed", needed_bytes=sum(needs.values()))


def _one_disk(scratch: Path, target: Path) -> bool:
    existing = next(path for path in (target, *target.parents) if path.exists())
    return existing.stat().st_dev == scratch.stat().st_dev


def _check_storage(context: StageContext) -> None:
    """What cannot be written, a bucket or another place, should fail a job in its first second, not after an hour."""
    destination = upload_destination(context)
    if destination is not None:
        S3Storage(context.settings.storage).check_bucket(destination.bucket)
    check_upload_target(context)


def _check_imatrix(given: GivenMatrix) -> None:
    """A file that is no matrix, or no text, is refused before the conversion, not after it."""
    if given.path is not None:
        load_imatrix(given.path)
    if given.calibration is not None:
        load_calibration(given.calibration)


def _check_evaluation(given: GivenText) -> None:
    """So are questions and data that cannot be read: the user asked for them."""
    if given.questions_file is not None:
        read_questions(given.questions_file)
    if given.dataset is not None:
        read_samples(given.dataset)


def _fingerprints(inputs: JobInputs) -> dict[str, Any]:
    """What the manifest says of the inputs: names, sizes and digests, no path of this machine."""
    fingerprints: dict[str, Any] = {"base_model": {"name": inputs.base_name, **_model_fingerprint(inputs.base)}}
    if inputs.draft_head is not None and (donor := inputs.draft_head.donor) is not None:
        fingerprints["draft_head"] = {"name": donor.directory.name, **_model_fingerprint(donor)}
    if inputs.adapter is not None:
        weights = sorted({(entry.file_name, entry.file) for entry in inputs.adapter.tensors.values()})
        fingerprints["adapter"] = {
            "name": inputs.checkpoint_name,
            "base_model": Path(inputs.adapter.base_name).name,
            "files": {name: {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)} for name, path in weights},
        }
    fingerprints["tokenizer"] = {
        "files": {name: {"sha256": sha256_file(path)} for name, path in sorted(inputs.tokenizer.files.items())}
    }
    return fingerprints


def _model_fingerprint(base: BaseModel) -> dict[str, Any]:
    """Headers only: hashing every shard would read the whole model once more."""
    return {
        "header_fingerprint": base.fingerprint,
        **({"made_plain_from": base.made_plain_from} if base.made_plain_from else {}),
        "tensors": len(base.tensors),
        "files": {
            name: {"size_bytes": path.stat().st_size}
            for name, path in sorted({(entry.file_name, entry.file) for entry in base.tensors.values()})
        },
    }


def _predicted(outputs: tuple[PlannedOutput, ...], sizes: SizeEstimate | None) -> dict[str, int]:
    if sizes is None:
        return {}
    known = sizes.quantized_bytes
    quantized = [(output.name, output.quant_type) for output in outputs if output.spec is QUANTIZED]
    of_types = {name: known[quant] for name, quant in quantized if quant is not None and quant in known}
    of_parts = {UNQUANTIZED: sizes.unquantized_bytes, PROJECTOR: sizes.projector_bytes}
    return {o.name: size for o in outputs if (size := of_parts.get(o.spec)) is not None} | of_types

"""The run's own data in a job: found by prepare, measured on by evaluate, calibrated with by imatrix and sensitivity.

No sample is used for both, also where the request names the data to measure on. The data is used where the request
names neither a text nor data. What cannot be used is said and passed over: nobody asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from api_client.contract.locations import is_remote
from worker.models.checkpoint import open_base_model
from worker.models.evaluate.datasets import Sample, read_samples
from worker.models.evaluate.texts import EvaluationText, data_set
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.imatrix.calibration import Calibration, load_calibration
from worker.models.rundata.find import find_run_data
from worker.models.rundata.split import as_lines, digest_of, share_out
from worker.stages.context import StageContext
from worker.stages.inputs import job_tokenizer
from worker.stages.prepared import RunDataFiles
from worker.storage.atomic import atomic_write_text

_MEASURED = "measured.jsonl"
_LEAST_SHARE = 0.25
"""Own data of less than this part of the shipped text's length is joined by it: a matrix of little text is poor."""
_TEMPLATE_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)


def look_for_run_data(context: StageContext, checkpoint: Path | None) -> RunDataFiles:
    """What the trainer's notes beside the checkpoint name, where the job has a use for it."""
    wanted, matrix = context.request.evaluation, context.request.imatrix
    measures = StageName.EVALUATE in context.plan and wanted.text is None and wanted.dataset is None
    computes = (StageName.IMATRIX in context.plan and matrix.path is None) or StageName.SENSITIVITY in context.plan
    calibrates = computes and matrix.calibration is None
    if checkpoint is None or not (measures or calibrates):
        return RunDataFiles()
    run_data = find_run_data(run_directories(context, checkpoint), context.settings.allowed_roots)
    for reason in run_data.passed_over:
        context.report.log(f"Data of the run is passed over: {reason}", level="warning")
    if run_data.path is not None:
        held_out = f", held out: {run_data.held_out.name}" if run_data.held_out is not None else ""
        context.report.log(
            f"The run's own data, by {run_data.named_by}: {run_data.path.name}{held_out}", data=str(run_data.path)
        )
    return RunDataFiles(path=run_data.path, held_out=run_data.held_out)


def run_directories(context: StageContext, checkpoint: Path) -> list[Path]:
    """Where a run's notes may be: beside the checkpoint's weights, and, of one that was not fetched alone, above it."""
    fetched = is_remote(context.request.checkpoint or "")
    return [checkpoint] if fetched else [checkpoint, checkpoint.parent]


def text_of_run(context: StageContext, tokenizer: Any) -> EvaluationText | None:
    """The samples of the run's data that are measured on; ``None`` where there are none that can be run."""
    data = context.prepared.run_data
    if data.path is None:
        return None
    try:
        shares = share_out(data.path, data.held_out)
        lines = context.scratch / _MEASURED
        atomic_write_text(lines, as_lines(shares.measured))
        text = data_set(lines, tokenizer)
    except PackagingError as error:
        if error.code not in (ErrorCode.DATASET_INVALID, ErrorCode.CALIBRATION_TOO_SHORT):
            raise
        context.report.log(f"The run's own data is not measured on: {error.message}", level="warning")
        return None
    source = {"kind": "run", "name": (data.held_out or data.path).name, "sha256": shares.source.sha256}
    return EvaluationText(text.sequences, text.source.model_copy(update=source))


def calibration_text(context: StageContext) -> Calibration:
    """The text that a matrix or sensitivities are computed from: the request's, else the run's own data, else ours."""
    given = context.prepared.imatrix.calibration
    if given is not None:
        return load_calibration(given)
    own = _calibration_of_run(context)
    if own is not None:
        return own
    context.report.log(
        "The calibration text shipped with trainpack is used; text like your own data gives better files",
        level="warning",
    )
    return load_calibration(None)


def _calibration_of_run(context: StageContext) -> Calibration | None:
    """The run's data as calibration text, through the packaged template; ``None`` where there is none to use."""
    data = context.prepared.run_data
    if data.path is None:
        return None
    base = open_base_model(context.prepared.base_dir, allowed_roots=context.settings.allowed_roots)
    tokenizer = load_tokenizer(job_tokenizer(context), base.config)
    try:
        samples = _not_measured(context, data.path, data.held_out)
    except PackagingError as error:
        context.report.log(f"The run's own data is not calibrated with: {error.message}", level="warning")
        return None
    shipped = load_calibration(None)
    texts: list[str] = []
    length = 0
    for sample in sorted(samples, key=digest_of):  # any beginning of them is a fair part
        text = _rendered(sample, tokenizer)
        if length + len(text) > len(shipped.text):
            break
        texts.append(text)
        length += len(text)
    if not texts:
        context.report.log(f"No sample of {data.path.name} is left to calibrate with", level="warning")
        return None
    own = "\n".join(texts)
    if length >= _LEAST_SHARE * len(shipped.text):
        return Calibration(data.path.name, own, special_tokens=True)
    return Calibration(f"{data.path.name} and {shipped.name}", f"{own}\n{shipped.text}", special_tokens=True)


def _not_measured(context: StageContext, path: Path, held_out: Path | None) -> Sequence[Sample]:
    """The samples of the run that no file of this job is measured on.

    Data that the request names to measure on is kept out whole: who names it wants all of it measured on.
    """
    named = context.prepared.evaluation.dataset
    if named is None or StageName.EVALUATE not in context.plan:
        return share_out(path, held_out).calibration
    trained = read_samples(path).samples
    measured = {digest_of(sample) for sample in read_samples(named).samples}
    left = [sample for sample in trained if digest_of(sample) not in measured]
    if len(left) < len(trained):
        context.report.log(
            f"{len(trained) - len(left)} of {len(trained)} samples of {path.name} are also in {named.name}, which is"
            " measured on, and are not calibrated with"
        )
    return left


def _rendered(sample: Sample, tokenizer: Any) -> str:
    """A sample as the model saw it; empty where the template does not take it."""
    if not sample.messages:
        return sample.text
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in sample.messages)
    try:
        text: str = tokenizer.apply_chat_template(list(sample.messages), tokenize=False)
    except _TEMPLATE_ERRORS:
        return ""
    return text

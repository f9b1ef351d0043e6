"""Evaluate: how close each model file is to the model it was made from, and whether it may be published.

Reads the model files, the overlay and the base model; writes ``quality.json`` to scratch, and the scores of finished
rounds, from which an attempt after a stop continues. A replay with another bound reads them again and runs nothing.
Where the model cannot be run here, the report says why and the job goes on, unless it asks for a bound.
Raises ``quality_below_threshold``, ``dataset_invalid``, ``calibration_too_short``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from api_client.contract.outputs import QUALITY, UNQUANTIZED
from api_client.contract.quality import (
    LINES_FIELD,
    REPORT_FACT,
    FileQuality,
    OriginStep,
    QualityLine,
    QualityReport,
    StepState,
    StepWord,
)
from api_client.contract.request import EvaluationOptions
from worker.models.adapters import open_adapter
from worker.models.adapters.beside import find_beside
from worker.models.adapters.writer import misread_by_installed
from worker.models.checkpoint import BaseModel
from worker.models.evaluate.report import make_report
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.texts import CONTEXT_TOKENS, chosen_text, shipped_parts
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.evaluate.variants import QuantizedFile
from worker.models.gguf.metadata import get_value
from worker.models.origin.trace import Trained, Unquantized, trace
from worker.stages.context import StageContext, StageResult
from worker.stages.deaths import deaths_before
from worker.stages.facts import without_paths
from worker.stages.inputs import job_base, job_overlay, job_tokenizer
from worker.stages.layout import job_layout, open_layout
from worker.stages.measurable import NEVER_HIDDEN, CannotRunError, running_model
from worker.stages.questions import ask_all, questions_of_job, unmet
from worker.stages.run_data import text_of_run
from worker.storage.atomic import atomic_write_text

QUICK_SHARE = 0.25
"""Part of the job's time so far that ``quick`` may take."""
QUICK_SECONDS = 60.0
"""What it may take in any case."""
QUICK_TOKENS = 8192
"""More than that it does not take, however quick the model is: the error of a mean falls with the root of it alone."""
_REMEDY_OF_ORIGIN = (
    "Replay from prepare, which reads the inputs again; where it says the same, the adapter on disk was changed or"
    " trainpack is at fault: please report it. evaluation.on_fail = warn publishes the file all the same."
)
_CUT_CHARACTERS = 400
"""Of each part of the shipped text, to see that llama.cpp cuts it as training did."""
_SCORES = "evaluation.npz"
_BEGUN = "evaluation.begun"
_DEATHS = 2
"""After so many deaths in the middle of it, an attempt measures nothing: one more would cost the job its files."""
_DIED = f"{_DEATHS} attempts ended with their process, most likely for want of memory"


def run(context: StageContext) -> StageResult:
    """Measure, report and judge."""
    made = context.artifacts(ArtifactKind.GGUF, ArtifactKind.QUANTIZED)
    files = [a for a in made if a.part is ModelPart.MODEL and a.shard_of is None]
    with deaths_before(context.scratch / _BEGUN) as deaths:
        report = _measured(context, files) if deaths < _DEATHS else _unmeasured(context, files, _DIED)
    questions = questions_of_job(context)
    if questions:
        report = report.model_copy(update={"questions": ask_all(context, files, questions)})
    path = context.scratch / context.names.name(QUALITY)
    atomic_write_text(path, report.model_dump_json(indent=1) + "\n")
    for file in report.files:
        context.report.log(_sentence(file), file=file.name)
    _judge(context, report, files)
    return StageResult((Artifact.of(path, ArtifactKind.QUALITY),), _facts(report))


def _measured(context: StageContext, files: Sequence[Artifact]) -> QualityReport:
    """The figures; where there can be none, the reason. A sound file is not lost to what cannot be measured."""
    try:
        with running_model():
            return _measure(context, files)
    except CannotRunError as error:
        return _unmeasured(context, files, str(error))


def _measure(context: StageContext, files: Sequence[Artifact]) -> QualityReport:
    base = job_base(context)
    tokenizer = load_tokenizer(job_tokenizer(context), base.config)
    given = context.prepared.evaluation
    own = text_of_run(context, tokenizer) if given.text is None and given.dataset is None else None
    text = own or chosen_text(tokenizer, given.text, given.dataset)
    with ExitStack() as stack:
        opened = [QuantizedFile(a.name, [Path(a.path)], a.quant_type, sha256=a.sha256) for a in files]
        for file in opened:
            stack.callback(file.close)
        scores = evaluate_files(
            base,
            job_overlay(context),
            opened,
            _taken(context, text.sequences),
            Budget(_seconds(context), context.scratch / _SCORES),
            setting=context.setting("tokens"),
        )
        report = make_report(scores, opened, text.source, _reference(context))
        architecture = str(get_value(opened[0].metadata, "general.architecture", ""))
    origin = _origin(context, files, base, tokenizer)
    report = report.model_copy(update={"origin": origin, "architecture": architecture})
    context.report.log(
        f"Compared over {scores.tokens} tokens of {text.source.name} in {scores.seconds:.0f} s, "
        f"{len(scores.parts)} of them scored",
        parts=dict(report.scored),
        left_out=text.source.left_out,
    )
    if text.source.shortened:
        context.report.log(
            f"{text.source.shortened} samples are longer than {CONTEXT_TOKENS} tokens; their beginnings were run"
        )
    if text.source.left_out:
        context.report.log(
            f"{text.source.left_out} samples were left out: {text.source.left_out_reason}", level="warning"
        )
    return report


def _origin(
    context: StageContext, files: Sequence[Artifact], base: BaseModel, tokenizer: Any
) -> tuple[OriginStep, ...]:
    """The unquantized file against the training, step by step; a difference is told, not refused."""
    name = context.names.name(UNQUANTIZED)
    overlay = job_overlay(context)
    adapter_dir, checkpoint_dir = context.prepared.adapter_dir, context.prepared.checkpoint_dir
    trained = Trained(base, None, None, tokenizer)
    if overlay is not None and adapter_dir is not None:
        roots = context.settings.allowed_roots
        beside = find_beside(checkpoint_dir or adapter_dir, adapter_dir, roots)
        adapter = open_adapter(adapter_dir, allowed_roots=roots)
        misread = misread_by_installed(adapter.config, adapter.writer)
        trained = Trained(base, adapter_dir, overlay, tokenizer, tuple(beside.weights.values()), misread)
    try:
        with _unquantized(context, files, name) as unquantized:
            steps = trace(
                trained,
                unquantized,
                [text[:_CUT_CHARACTERS] for _, text in shipped_parts()],
                run_llama_cpp=context.settings.verify_load,
                thorough=context.request.evaluation.level == "full",
                setting=context.setting(),
            )
    except NEVER_HIDDEN:
        raise
    except Exception as error:  # as above; figures that are measured already are not lost to it
        context.report.log(f"{name} cannot be traced back to the training: {error}", level="warning")
        return ()
    for step in steps:
        if step.state is StepState.DIFFERS:
            context.report.log(f"{name} differs from the training at {step.step}: {step.fact}", level="warning")
    return steps


@contextmanager
def _unquantized(context: StageContext, files: Sequence[Artifact], name: str) -> Iterator[Unquantized]:
    """The unquantized file; where it is not written, as it would be, and the smallest file for llama.cpp to read."""
    whole = next((a for a in files if a.kind is ArtifactKind.GGUF), None)
    if whole is not None:
        yield Unquantized(name, Path(whole.path), Path(whole.path))
        return
    layout = job_layout(context)
    assert layout is not None, "a job has the file or its layout"
    with open_layout(context, layout) as unwritten:
        yield Unquantized(name, unwritten, Path(min(files, key=lambda file: file.size_bytes).path))


def _taken(context: StageContext, sequences: Sequence[TokenSequence]) -> Sequence[TokenSequence]:
    """As many of the sequences as the level may run; they are mixed, so any beginning has something of every part."""
    if context.request.evaluation.level == "full":
        return sequences
    ends = accumulate(len(sequence.ids) for sequence in sequences)
    within = sum(end <= QUICK_TOKENS for end in ends)
    return sequences[: max(1, within)]


def _seconds(context: StageContext) -> float | None:
    if context.request.evaluation.level == "full":
        return None
    return max(QUICK_SECONDS, QUICK_SHARE * sum(result.duration_s for result in context.done.values()))


def _reference(context: StageContext) -> str:
    prepared = context.prepared
    merged = f" with {prepared.checkpoint_name}" if context.options.merge_lora else ""
    return prepared.base_name + merged


def _unmeasured(context: StageContext, files: Sequence[Artifact], reason: str) -> QualityReport:
    context.report.log(f"The files cannot be measured: {reason}", level="warning")
    return QualityReport(
        reference=_reference(context),
        files=tuple(
            FileQuality(
                name=file.name,
                size_bytes=file.size_bytes,
                bits_per_weight=file.facts.get("bits_per_weight") or 0.0,
                quant_type=file.quant_type,
                not_judged=reason,
            )
            for file in files
        ),
    )


def _sentence(file: FileQuality) -> str:
    """What a person reads in the log of one file."""
    if file.overall is None:
        return f"{file.name} could not be measured: {file.not_judged}"
    kld = file.overall.mean_kld
    error = f" ± {kld.error:.5f}" if kld.error is not None else ""
    kept = f", {100 * file.retention.value:.1f} % of the training kept" if file.retention is not None else ""
    return (
        f"{file.name}: mean KLD {kld.value:.5f}{error}, same most probable token in "
        f"{100 * file.overall.same_top.value:.1f} %{kept}"
    )


def _facts(report: QualityReport) -> dict[str, Any]:
    """What manifest, list of outputs and console show."""
    lines = {line.name: line for line in map(QualityLine.of, report.files) if line.mean_kld is not None}
    return {
        "files": {name: line.model_dump(exclude={"name", "not_judged"}) for name, line in lines.items()},
        REPORT_FACT: without_paths(report.model_dump(mode="json", exclude_none=True)),
    }


def _judge(context: StageContext, report: QualityReport, files: Sequence[Artifact]) -> None:
    """End the job, or warn, where a file does not keep the request's bounds."""
    wanted = context.request.evaluation
    faults = [
        (message, {"file": file.name, **fields})
        for file in report.files
        for message, fields in _faults(file, wanted, report)
    ]
    faults += [
        (message, {"file": name, "figure": "answer", "question": question})
        for name, question, message in unmet(report.questions, files)
    ]
    faults += _another_model(report, context.names.name(UNQUANTIZED))
    for message, facts in faults:
        if wanted.on_fail == "fail":
            lines = [QualityLine.of(file).model_dump(exclude_none=True) for file in report.files]
            raise PackagingError(
                ErrorCode.QUALITY_BELOW_THRESHOLD,
                message,
                remedy=_REMEDY_OF_ORIGIN if facts.get("figure") == "origin" else None,
                fields=facts | {LINES_FIELD: lines},
            )
        context.report.log(message, level="warning")


def _another_model(report: QualityReport, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The unquantized file, where it predicts otherwise than base and adapter do in transformers and PEFT.

    Asked for or not: a file of another model is of no use at any size, and every other file was made of it. The
    prediction decides, with room for rounding, and not the bits of a weight; the first step that differs is named. A
    template or a token that differs is a warning: transformers itself reads some tokenizers in two ways.
    """
    steps = {step.step: step for step in report.origin}
    logits, first = steps.get(StepWord.LOGITS), report.first_difference()
    if logits is None or logits.state is not StepState.DIFFERS or first is None:
        return
    fault = "" if first is logits else f"; it differs first at {first.step}: {first.fact}"
    message = f"{name} does not predict as the model that was trained: {logits.fact}{fault}"
    yield message, {"file": name, "figure": "origin", "step": first.step}


def _faults(
    file: FileQuality, wanted: EvaluationOptions, report: QualityReport
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Bounds that a file does not keep: the sentence, and the numbers."""
    highest, lowest = wanted.max_mean_kld, wanted.min_retention
    if file.overall is None:
        if highest is not None or lowest is not None:
            yield f"{file.name} could not be measured, and a bound is asked for: {file.not_judged}", {}
        return
    kld = file.overall.mean_kld.value
    if highest is not None and kld > highest:
        yield (
            f"{file.name} has a mean KLD of {kld:.5f}, and at most {highest:g} is asked for",
            {"figure": "mean_kld", "value": kld, "bound": highest},
        )
    if lowest is None or (report.training is not None and not report.training_measurable):
        return
    if file.retention is None:
        yield f"{file.name} has no retention, since no adapter was merged", {"figure": "retention"}
    elif file.retention.value < lowest:
        yield (
            f"{file.name} keeps {100 * file.retention.value:.1f} % of the training, "
            f"and at least {100 * lowest:g} % is asked for",
            {"figure": "retention", "value": file.retention.value, "bound": lowest},
        )

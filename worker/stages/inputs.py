"""The inputs of a job, resolved: which directories, what kind of checkpoint, which tokenizer. Headers only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import ArtifactKind, StageName
from api_client.contract.locations import CHECKPOINT_WORDS
from api_client.contract.outputs import InputNames
from api_client.contract.request import PackagingRequest, is_remote
from api_client.runs.base_models import likely_base, named_base_models
from api_client.runs.checkpoints import (
    CheckpointList,
    choose_checkpoint,
    list_checkpoints,
    passed_over,
    resolve_checkpoint,
)
from api_client.runs.files import LocalRunFiles
from api_client.runs.kinds import CheckpointKind
from api_client.words.suggestions import did_you_mean
from worker.models.adapters.adapter import Adapter, open_adapter
from worker.models.adapters.overlay import Overlay
from worker.models.adapters.trained_base import base_as_trained
from worker.models.checkpoint import BaseModel, CheckpointLayout, classify_checkpoint, open_base_model
from worker.models.convert.draft_head import with_draft_head_of, without_draft_head
from worker.models.convert.metadata import ModelMetadata, describe
from worker.models.convert.tokenizer import TokenizerChoice, find_tokenizer
from worker.models.convert.upstream import check_architecture
from worker.stages.context import StageContext
from worker.stages.draft_head import DraftHead, settle_draft_head
from worker.stages.prepared import GivenMatrix, GivenText, Prepared, RunDataFiles
from worker.storage.atomic import atomic_write_bytes
from worker.storage.inputs import fetch, fetch_file
from worker.storage.runs import open_run

_GIVEN = "given"
"""Directory for what the user gave; apart, so that it takes no name of the job's own files."""


@dataclass(frozen=True)
class JobInputs:
    """Where a job's inputs are and what they are.

    Attributes:
        base: The model to convert: the base model, or a full-weights checkpoint in its place.
        names: What they are called: output files are named after them.
        adapter: The adapter, where one is merged or exported.
        checkpoint: The chosen checkpoint's directory.
        tokenizer: The tokenizer that goes into the GGUF.
        architecture: Hugging Face architecture name.
        base_named_by: File that names the base model, where the one that the task names is gone.
        draft_head: What becomes of its prediction layers.
    """

    base: BaseModel
    names: InputNames
    adapter: Adapter | None
    checkpoint: Path | None
    tokenizer: TokenizerChoice
    architecture: str
    base_named_by: str | None = None
    draft_head: DraftHead | None = None

    @property
    def converted(self) -> BaseModel:
        """The model as it is converted: ``base``, with prediction layers or without."""
        return self.draft_head.model if self.draft_head else self.base

    @property
    def base_name(self) -> str:
        """Name of the base model, for output files and metadata."""
        return self.names.base

    @property
    def checkpoint_name(self) -> str | None:
        """Name of the checkpoint, e.g. ``checkpoint-900``; names the exported adapter."""
        return self.names.checkpoint

    def handed_over(
        self, imatrix: GivenMatrix, evaluation: GivenText, sensitivity: Path | None, run_data: RunDataFiles
    ) -> Prepared:
        """What later stages are told of them."""
        return Prepared(
            base_dir=self.base.directory,
            base_name=self.base_name,
            base_named_by=self.base_named_by,
            # the checkpoint itself: weights beside the adapter belong to it, wherever in it the adapter lies
            adapter_dir=self.checkpoint if self.adapter else None,
            adapter_base=self.adapter.base_name if self.adapter else None,
            checkpoint_dir=self.checkpoint,
            checkpoint_name=self.checkpoint_name,
            tokenizer_dir=self.tokenizer.directory,
            has_projector=self.names.has_projector,
            draft_head_does=self.draft_head.does if self.draft_head else "keep",
            draft_head_dir=self.draft_head.donor.directory if self.draft_head and self.draft_head.donor else None,
            imatrix=imatrix,
            evaluation=evaluation,
            sensitivity=sensitivity,
            run_data=run_data,
        )

    def facts(self) -> dict[str, Any]:
        """What the manifest says of them beside their fingerprints."""
        return {
            "base_name": self.base_name,
            "checkpoint_name": self.checkpoint_name,
            "architecture": self.architecture,
        }


def resolve_inputs(context: StageContext) -> JobInputs:
    """Fetch what is remote, then open and check every input.

    Raises:
        PackagingError: the codes of class ``refuse`` about inputs; ``download_failed``, ``storage_unreachable``.
    """
    request, options = context.request, context.options
    assert request.base_model is not None, "rules.check_inputs has seen to it"
    uses_adapter = options.merge_lora or options.export_lora
    checkpoint = _checkpoint(context) if request.checkpoint is not None else None
    names = InputNames.of(request, options, checkpoint.name if checkpoint is not None else None)
    named_by = None
    if checkpoint is not None and not uses_adapter:
        base_dir = _full_weights(context, checkpoint).directory
    else:
        base_dir, named_by = _base(context, request.base_model, checkpoint)
        names = replace(names, base=base_dir.name if named_by else names.base)
    roots = context.settings.allowed_roots
    base = open_base_model(base_dir, allowed_roots=roots, as_stored=not options.merge_lora)
    base = in_precision(context, base)
    trained_from = None
    if checkpoint is not None and not uses_adapter:
        trained_from = partial(_donor, context, request.base_model, checkpoint)
    architecture = check_architecture(base.config, context.settings.llama_cpp_dir)
    head = settle_draft_head(context, base, architecture, trained_from)
    adapter = None
    if checkpoint is not None and uses_adapter:
        adapter = open_adapter(checkpoint, allowed_roots=roots)
    tokenizer = _tokenizer(context, checkpoint, base_dir, adapter.base_name if adapter else None)
    return JobInputs(base, names, adapter, checkpoint, tokenizer, architecture, named_by, head)


def job_base(context: StageContext) -> BaseModel:
    """The base model that ``prepare`` found, opened again in a later stage, in the precision that the request names.

    Its weights are plain, however the files hold them.

    Raises:
        PackagingError: as :func:`~worker.models.checkpoint.open_base_model` and
            :func:`~worker.models.adapters.trained_base.base_as_trained`.
    """
    base = open_base_model(context.prepared.base_dir, allowed_roots=context.settings.allowed_roots)
    return in_precision(context, base)


def job_source(context: StageContext) -> Path | BaseModel:
    """What is converted: merged into, the base with plain weights; alone, the directory, which upstream may know.

    Its prediction layers are as ``prepare`` settled them.
    """
    prepared, roots = context.prepared, context.settings.allowed_roots
    if prepared.draft_head_dir is not None:
        donor = open_base_model(prepared.draft_head_dir, allowed_roots=roots)
        return with_draft_head_of(job_base(context), donor)
    if context.options.merge_lora:
        base = job_base(context)
        return without_draft_head(base) if prepared.draft_head_does == "drop" else base
    if prepared.draft_head_does == "drop":
        return without_draft_head(open_base_model(prepared.base_dir, allowed_roots=roots, as_stored=True))
    return prepared.base_dir


def in_precision(context: StageContext, base: BaseModel) -> BaseModel:
    """The base model in the precision that the request names."""
    rounded_as = context.request.base_precision
    return base if rounded_as == "stored" else base_as_trained(base, rounded_as)


def job_tokenizer(context: StageContext) -> TokenizerChoice:
    """The tokenizer that ``prepare`` found, opened again in a later stage."""
    prepared = context.prepared
    return _tokenizer(context, prepared.checkpoint_dir, prepared.base_dir, prepared.adapter_base)


def job_overlay(context: StageContext) -> Overlay | None:
    """The merge's updates; ``None`` where the job merges nothing. An overlay that is missing never means that.

    Raises:
        PackagingError: ``internal_error`` where the job merges and the stage was handed no overlay; ``artifact_lost``.
    """
    overlays = context.artifacts(ArtifactKind.OVERLAY)
    return Overlay.load(Path(overlays[0].path)) if overlays else None


def job_metadata(context: StageContext) -> ModelMetadata:
    """What the packaged files say of themselves."""
    prepared = context.prepared
    return describe_job(context, prepared.base_dir, prepared.checkpoint_dir, prepared.adapter_base)


def describe_inputs(context: StageContext, inputs: JobInputs) -> ModelMetadata:
    """As :func:`job_metadata`, of inputs that ``prepare`` has just resolved."""
    named = inputs.adapter.base_name if inputs.adapter else None
    return describe_job(context, inputs.base.directory, inputs.checkpoint, named)


def describe_job(
    context: StageContext, base_dir: Path, checkpoint: Path | None, adapter_base: str | None
) -> ModelMetadata:
    """As :func:`job_metadata`, where ``prepare`` has no facts yet."""
    uses_adapter = context.options.merge_lora or context.options.export_lora
    return describe(
        base_dir,
        checkpoint_dir=checkpoint if uses_adapter else None,
        adapter_base=adapter_base,
        name=context.request.model_name,
    )


def fetch_imatrix(context: StageContext) -> GivenMatrix:
    """Fetch the importance matrix or calibration text that the request names."""
    if not context.options.quantize:
        return GivenMatrix()
    wanted = context.request.imatrix
    return GivenMatrix(path=_fetched_file(context, wanted.path), calibration=_fetched_file(context, wanted.calibration))


def fetch_sensitivity(context: StageContext) -> Path | None:
    """Fetch the sensitivity file that the request names."""
    return _fetched_file(context, context.request.fit.sensitivity, missing=ErrorCode.SENSITIVITY_INVALID)


def fetch_evaluation(context: StageContext) -> GivenText:
    """Fetch the text or data that the files are to be measured on."""
    if StageName.EVALUATE not in context.plan:
        return GivenText()
    wanted = context.request.evaluation
    return GivenText(
        text=_fetched_file(context, wanted.text),
        dataset=_fetched_file(context, wanted.dataset),
        questions_file=_fetched_file(context, wanted.questions_file),
    )


def keep_given(context: StageContext, given: Path) -> Path:
    """A copy of a given file among the job's own, under its name, which quantized files say.

    A job reads back only what lies in its own directories, and the user may do with theirs what they like.
    """
    path = context.scratch / _GIVEN / given.name
    path.parent.mkdir(exist_ok=True)
    atomic_write_bytes(path, given.read_bytes())
    return path


def _base(context: StageContext, location: str, checkpoint: Path | None) -> tuple[Path, str | None]:
    """The base model, and the file that names it where it is not the one of the request.

    One that the task names may have moved since: it is looked for where the adapter and its run say. One that somebody
    gave by its path is never replaced, since the wrong base makes a file that loads and talks nonsense.
    """
    directory = _fetched(context, location, "base_model")
    if is_remote(location) or directory.exists():
        return directory, None
    task = context.request.task
    if task is None or task.base_model != location:
        raise _base_missing(context, location, checkpoint)
    for named in named_base_models(LocalRunFiles(checkpoint.parent), checkpoint.name) if checkpoint else ():
        try:
            moved = context.settings.allowed_roots.resolve(named.location)
        except PackagingError:  # no absolute path, or none that jobs may read
            continue
        if (moved / "config.json").is_file():
            context.report.log(
                f"Base model {location} of the task does not exist; taking {moved}, which {named.file} names",
                level="warning",
                base_model=str(moved),
                named_by=named.file,
            )
            return moved, named.file
    raise _base_missing(context, location, checkpoint)


def _donor(context: StageContext, location: str, checkpoint: Path) -> BaseModel:
    """The base model that full weights were trained from; one that is elsewhere is fetched where it is asked for."""
    if is_remote(location) and context.request.draft_head != "graft":
        raise PackagingError(
            ErrorCode.BASE_MODEL_NOT_FOUND,
            f"the base model {location} is fetched for them with draft_head `graft` alone",
            fields={"field": "draft_head"},
        )
    directory, _ = _base(context, location, checkpoint)
    return open_base_model(directory, allowed_roots=context.settings.allowed_roots)


def _base_missing(context: StageContext, location: str, checkpoint: Path | None) -> PackagingError:
    run = LocalRunFiles(checkpoint.parent) if checkpoint else None
    meant = likely_base(location, run, checkpoint.name if checkpoint else "", context.settings.allowed_roots.allow)
    return PackagingError(
        ErrorCode.BASE_MODEL_NOT_FOUND,
        f"base_model: {location} does not exist" + did_you_mean(meant),
        fields={"field": "base_model", "path": location, "suggestion": meant},
    )


def _checkpoint(context: StageContext) -> Path:
    """The checkpoint directory: a path, a URL, or a word or bare name looked up in the run's directory."""
    request = context.request
    reference = request.checkpoint
    assert reference is not None
    if is_remote(reference):
        run, _, name = reference.rstrip("/").rpartition("/")
        if run.startswith("s3://") and name in CHECKPOINT_WORDS:
            return _chosen(context, run, name)
        return _fetched(context, reference, "checkpoint")
    if "/" in reference:
        return _resolved(context, str(_fetched(context, reference, "checkpoint")), None)
    location = request.task.output_dir if request.task else request.output_dir
    if location is not None and location.startswith("s3://"):
        return _chosen(context, location, reference)
    if location is None or is_remote(location):
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_FOUND,
            f"checkpoint {reference!r} is looked up in a run's directory, and {location or 'no directory'} is given",
            remedy="Give the checkpoint's full path or URL.",
        )
    return _resolved(context, reference, _fetched(context, location, "checkpoint"))


def _resolved(context: StageContext, reference: str, run: Path | None) -> Path:
    """The directory that a local reference means; for a word, what it left out is said."""
    path = resolve_checkpoint(reference, run)
    if reference.rpartition("/")[2] in CHECKPOINT_WORDS:
        _say_passed_over(context, list_checkpoints(path.parent), path.name)
    return path


def _chosen(context: StageContext, run: str, reference: str) -> Path:
    """The checkpoint of a run in object storage that a word or a bare name means, fetched."""
    listing = list_checkpoints(open_run(run, context.settings))
    chosen = choose_checkpoint(listing, reference)
    context.report.log(f"Checkpoint {reference} of {run} is {chosen.name}", checkpoint=chosen.path)
    if reference in CHECKPOINT_WORDS:
        _say_passed_over(context, listing, chosen.name)
    return _fetched(context, chosen.path, "checkpoint")


def _say_passed_over(context: StageContext, listing: CheckpointList, name: str) -> None:
    for passed in passed_over(listing, name):
        context.report.log(
            f"{passed.name} is newer than {name}, but cannot be packaged: {passed.problem}",
            level="warning",
            checkpoint=passed.path,
        )


def _tokenizer(
    context: StageContext, checkpoint: Path | None, base_dir: Path, adapter_base: str | None
) -> TokenizerChoice:
    return find_tokenizer(
        checkpoint,
        base_dir,
        adapter_base,
        run_dir=_run_dir(context.request, checkpoint),
        allowed_roots=context.settings.allowed_roots,
    )


def _fetched(context: StageContext, location: str, kind: str) -> Path:
    return fetch(
        location,
        context.settings,
        kind=kind,
        report=context.report.progress,
        should_stop=context.report.should_stop,
        holder=context.scratch,
    )


def _fetched_file(
    context: StageContext, location: str | None, *, missing: ErrorCode = ErrorCode.REQUEST_INVALID
) -> Path | None:
    """A file that the request names, on this machine; ``None`` where it names none."""
    if location is None:
        return None
    return fetch_file(
        location, context.settings, report=context.report.progress, missing=missing, holder=context.scratch
    )


def _full_weights(context: StageContext, checkpoint: Path) -> CheckpointLayout:
    layout = classify_checkpoint(checkpoint, allowed_roots=context.settings.allowed_roots)
    if layout.kind is CheckpointKind.ADAPTER:
        raise PackagingError(
            ErrorCode.CHECKPOINT_IS_ADAPTER,
            f"{checkpoint} is an adapter, and template {context.request.template!r} neither merges nor exports it",
            fields={"checkpoint": str(checkpoint), "template": context.request.template},
        )
    return layout


def _run_dir(request: PackagingRequest, checkpoint: Path | None) -> Path | None:
    if request.task is not None and not is_remote(request.task.output_dir):
        run = Path(request.task.output_dir)
        if checkpoint is not None and checkpoint.is_relative_to(run):
            return run
    return None

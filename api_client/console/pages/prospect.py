"""What a job would make, as the new job page shows it: types with sizes, files, total, and whether they fit. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from api_client.console.pages.form import PLAIN, NewJobForm
from api_client.console.pages.form_request import imatrix_of
from api_client.console.pages.lookup import PathAnswers
from api_client.contract.disk_need import DiskNeed, disk_needs
from api_client.contract.errors import PackagingError
from api_client.contract.field_types import FieldKind
from api_client.contract.field_values import typed, value_of
from api_client.contract.fit import AnyQuantType, quant_type_of
from api_client.contract.forecast import Forecast, MemoryNeed, Workload, forecast, usual_memory_bytes
from api_client.contract.job import Job, StageName
from api_client.contract.outputs import (
    ADAPTER,
    MERGED_DIRECTORY,
    PROJECTOR,
    QUANTIZED,
    RECORDS,
    UNQUANTIZED,
    InputNames,
    PlannedOutput,
    planned_outputs,
)
from api_client.contract.plan import plan_stages
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.recommend import Recommendation
from api_client.contract.request import PackagingRequest, unquantized_type
from api_client.contract.rules import ResolvedOptions, writes_unquantized
from api_client.words.figures import format_measured
from api_client.words.language import Language

_SIXTEEN_BIT = QuantType.BF16
_NEVER_WRONG = (FieldKind.TEXT, FieldKind.CHOICE, FieldKind.SWITCH)
"""Kinds of plain fields that can be read while the form is half filled in."""


@dataclass(frozen=True)
class TypeRow:
    """One quant type to choose.

    ``memory_bytes`` and ``fits`` are those at the place to run that was chosen; ``recommended`` is for it, too, else
    for models in general. A type is ``unfit`` that cannot be made of the model that was measured.
    """

    name: str
    bits_per_weight: float
    size_bytes: int | None
    needs_imatrix: bool
    recommended: bool
    description: str
    chosen: bool
    memory_bytes: int | None = None
    fits: bool = True
    unfit: bool = False


@dataclass(frozen=True)
class FileRow:
    """One file that the job would make; a size that is not exact is marked."""

    name: str
    size_bytes: int | None
    exact: bool = True


@dataclass(frozen=True)
class Prospect:
    """What the job would make.

    Attributes:
        files: The files.
        total_bytes: Their total, where all are known.
        unwritten: Whether the unquantized file is never written.
        disks: What each disk needs, as far as workers said what is free.
    """

    files: Sequence[FileRow]
    total_bytes: int | None
    unwritten: bool
    disks: Sequence[DiskNeed] = ()

    @property
    def too_little(self) -> bool:
        """Whether a disk is known to have too little room."""
        return any(disk.too_little for disk in self.disks)


def judge(form: NewJobForm, answers: PathAnswers) -> Recommendation | None:
    """Every type at the place that the form names; ``None`` without one, or while the model was not measured."""
    if not form.target or answers.sizes is None:
        return None
    return answers.sizes.judge(form.target, int(form.context))


def type_groups(
    chosen: Sequence[str], answers: PathAnswers, language: Language, judged: Recommendation | None = None
) -> dict[str, list[TypeRow]]:
    """Quant types by family, each with its size for the model that was measured, and what ``judge`` says of it."""
    sizes = answers.sizes.sizes if answers.sizes else {}
    choices = {choice.quant_type: choice for choice in judged.choices} if judged else {}
    groups: dict[str, list[TypeRow]] = {}
    for quant_type, info in QUANT_TYPES.items():
        choice = choices.get(quant_type)
        unfit = answers.sizes is not None and quant_type not in sizes
        row = TypeRow(
            name=quant_type.value,
            bits_per_weight=info.bits_per_weight,
            size_bytes=sizes.get(quant_type),
            needs_imatrix=info.needs_imatrix,
            recommended=not unfit and (choice.recommended if choice else info.recommended),
            description=(
                format_measured(language, choice.measured)
                if choice and choice.measured
                else language.choose(info.description_en, info.description_zh)
            ),
            chosen=quant_type.value in chosen,
            memory_bytes=choice.memory_bytes if choice else None,
            fits=choice.fits if choice else True,
            unfit=unfit,
        )
        groups.setdefault(info.family, []).append(row)
    return groups


def foresee(
    form: NewJobForm, base_model: str, switches: Mapping[str, bool], types: Sequence[str], answers: PathAnswers
) -> Prospect:
    """The files of a job with these choices, by the names that the job itself gives them.

    Args:
        form: What was filled in.
        base_model: Path of the base model; its name is the files' where nothing is merged.
        switches: The four switches.
        types: Chosen quant types.
        answers: What workers said.
    """
    options = _options(switches, types)
    request = _sketch(form, base_model, options)
    inputs = InputNames.of(request, options, chosen_name(PurePosixPath(form.checkpoint).name, answers))
    if request.projector == "auto" and answers.sizes and answers.sizes.projector_bytes is not None:
        inputs = replace(inputs, has_projector=True)
    planned = [output for output in planned_outputs(request, options, inputs) if output.kind not in RECORDS]
    rows = [(output, _row(output, request, options, answers)) for output in planned]
    files = [row for _, row in rows]
    known = [row.size_bytes for output, row in rows if not output.kind.is_small]
    total = sum(size for size in known if size is not None) if known and None not in known else None
    return Prospect(files, total, not writes_unquantized(request, options), _disks(total, request, options, answers))


def _disks(
    published: int | None, request: PackagingRequest, options: ResolvedOptions, answers: PathAnswers
) -> tuple[DiskNeed, ...]:
    space = answers.space
    if space is None:
        return ()
    made = published
    dropped = options.quantize and not request.keep_unquantized and writes_unquantized(request, options)
    if published is not None and dropped and answers.sizes:
        made = published + answers.sizes.sizes.get(unquantized_type(request), 0)
    elsewhere = DiskNeed(space.scratch.path, None, space.scratch.free_bytes) if space.scratch else None
    return disk_needs(made, published, DiskNeed(space.path, None, space.free_bytes), elsewhere)


def memory_of(told: Forecast | None, answers: PathAnswers) -> MemoryNeed | None:
    """What the job takes of the memory of the host that answered; None while the model was not measured."""
    if told is None or answers.sizes is None:
        return None
    return MemoryNeed.of(told, usual_memory_bytes(answers.sizes.shape), answers.sizes.memory_bytes)


def _row(output: PlannedOutput, request: PackagingRequest, options: ResolvedOptions, answers: PathAnswers) -> FileRow:
    sizes = answers.sizes.sizes if answers.sizes else {}
    # a merged file says more of itself, and its vocabulary may have grown; what is dropped was counted
    exact = not options.merge_lora and request.draft_head in ("auto", "keep")
    if output.spec is QUANTIZED and isinstance(output.quant_type, QuantType):
        return FileRow(output.name, sizes.get(output.quant_type), exact)
    if output.spec in (UNQUANTIZED, MERGED_DIRECTORY):
        # as the base model is hardly ever anything but a 16-bit float
        auto = request.gguf_dtype == "auto" or output.spec is MERGED_DIRECTORY
        dtype = _SIXTEEN_BIT if auto else unquantized_type(request)
        return FileRow(output.name, sizes.get(dtype), exact and not auto)
    if output.spec is PROJECTOR and answers.sizes and not request.names_projector and request.gguf_dtype == "auto":
        return FileRow(output.name, answers.sizes.projector_bytes, exact)
    if output.spec is ADAPTER:
        name = InputNames.of(request, options, None).checkpoint or ""
        checkpoint = answers.run.listing.find(chosen_name(name, answers)) if answers.run else None
        return FileRow(output.name, checkpoint.weights_bytes if checkpoint else None, exact=False)
    return FileRow(output.name, None, exact=False)


def _sketch(form: NewJobForm, base_model: str, options: ResolvedOptions) -> PackagingRequest:
    """The request as far as the form makes one; what cannot be read is left out, and said when the form is sent."""
    values: dict[str, Any] = {
        "base_model": base_model,
        "checkpoint": typed(form.checkpoint if options.merge_lora or options.export_lora else form.weights),
        "output_dir": typed(form.run or form.output_dir),  # where a bare checkpoint name is looked up
        "imatrix": _imatrix(form),
        "evaluation": form.says("evaluation"),
        **{
            row.path: value_of(row.kind, form.plain[name])
            for name, row in PLAIN.items()
            if row.kind in _NEVER_WRONG and "." not in row.path
        },
    }
    values = {name: value for name, value in values.items() if value not in (None, "", {})}
    while True:
        try:
            return PackagingRequest(**values)
        except PackagingError as error:
            if values.pop(str(error.fields.get("field", "")).partition(".")[0], None) is None:
                return PackagingRequest()


def _imatrix(form: NewJobForm) -> dict[str, Any]:
    try:
        return imatrix_of(form)
    except PackagingError:
        return {}


def _options(switches: Mapping[str, bool], types: Sequence[str]) -> ResolvedOptions:
    known = tuple(_known_types(types)) if switches["quantize"] else ()
    return ResolvedOptions(**switches, quant_types=known)


def _known_types(types: Sequence[str]) -> Iterator[AnyQuantType]:
    """Those that can be read; the others are said when the form is sent."""
    for text in types:
        with contextlib.suppress(PackagingError):
            yield quant_type_of(text)


def chosen_name(reference: str, answers: PathAnswers) -> str:
    """The checkpoint's name that ``latest`` or ``best`` means, where the run is known."""
    listing = answers.run.listing if answers.run else None
    words = {"latest": listing.latest, "best": listing.best} if listing else {}
    return words.get(reference) or reference


def stages_of(form: NewJobForm, switches: Mapping[str, bool], types: Sequence[str]) -> tuple[StageName, ...]:
    """The stages that the job would have."""
    options = _options(switches, types)
    return plan_stages(_sketch(form, form.base_model, options), options)


def times_of(
    stages: Sequence[StageName], types: Sequence[str], answers: PathAnswers, prospect: Prospect, recent: Sequence[Job]
) -> Forecast | None:
    """How long the job would take, by recent jobs of the host that answered; None while the model was not measured."""
    if answers.sizes is None:
        return None
    model_bytes = answers.sizes.sizes.get(_SIXTEEN_BIT, 0)
    made_bytes = prospect.total_bytes or model_bytes
    work = Workload(tuple(stages), model_bytes, made_bytes, tuple(types), unwritten=prospect.unwritten)
    return forecast(work, recent, answers.sizes.host)

"""What a job would make, as the new job page shows it: types with sizes, files, total, and whether they fit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from api_client.console.pages.form import NewJobForm
from api_client.console.pages.form_request import imatrix_of
from api_client.console.pages.lookup import Found
from api_client.errors import PackagingError
from api_client.job import StageName
from api_client.language import Language
from api_client.plan import plan_stages
from api_client.quant_types import QUANT_TYPES, QuantType
from api_client.recommend import Recommendation, parse_target, recommend
from api_client.request import PackagingRequest
from api_client.rules import ResolvedOptions

_SIXTEEN_BIT = QuantType.BF16


@dataclass(frozen=True)
class TypeRow:
    """One quant type to choose.

    ``memory_bytes`` and ``fits`` are those at the place to run that was chosen; ``recommended`` is for it, too, else
    for models in general.
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


@dataclass(frozen=True)
class FileRow:
    """One file that the job would make; a size that is not exact is marked."""

    name: str
    size_bytes: int | None
    exact: bool = True


@dataclass(frozen=True)
class Prospect:
    """The files, their total where all are known, and whether that is more than there is room for."""

    files: Sequence[FileRow]
    total_bytes: int | None
    too_little: bool


def judge(form: NewJobForm, found: Found) -> Recommendation | None:
    """Every type at the place that the form names; ``None`` without one, or while the model was not measured."""
    if not form.target or found.sizes is None:
        return None
    target = parse_target(form.target, found.sizes.memory_bytes)
    return recommend(found.sizes.shape, found.sizes.sizes, target, int(form.context))


def type_groups(
    chosen: Sequence[str], found: Found, language: Language, judged: Recommendation | None = None
) -> dict[str, list[TypeRow]]:
    """Quant types by family, each with its size for the model that was measured, and what ``judge`` says of it."""
    sizes = found.sizes.sizes if found.sizes else {}
    choices = {choice.quant_type: choice for choice in judged.choices} if judged else {}
    groups: dict[str, list[TypeRow]] = {}
    for quant, info in QUANT_TYPES.items():
        choice = choices.get(quant)
        row = TypeRow(
            name=quant.value,
            bits_per_weight=info.bits_per_weight,
            size_bytes=sizes.get(quant),
            needs_imatrix=info.needs_imatrix,
            recommended=choice.recommended if choice else info.recommended,
            description=info.description_zh if language is Language.ZH else info.description_en,
            chosen=quant.value in chosen,
            memory_bytes=choice.memory_bytes if choice else None,
            fits=choice.fits if choice else True,
        )
        groups.setdefault(info.family, []).append(row)
    return groups


def foresee(
    form: NewJobForm, base_model: str, switches: Mapping[str, bool], types: Sequence[str], found: Found
) -> Prospect:
    """The files of a job with these choices.

    Args:
        form: What was filled in.
        base_model: Path of the base model; its name is the files' where nothing is merged.
        switches: The four switches.
        types: Chosen quant types.
        found: What workers said.
    """
    files = [*_model_files(form, base_model, switches, types, found), *_adapter_file(form, switches, found)]
    known = [file.size_bytes for file in files]
    total = sum(size for size in known if size is not None) if files and None not in known else None
    room = found.space.free_bytes if found.space else None
    return Prospect(files, total, total is not None and room is not None and total > room)


def _model_files(
    form: NewJobForm, base_model: str, switches: Mapping[str, bool], types: Sequence[str], found: Found
) -> list[FileRow]:
    if not switches["export_gguf"]:
        return []
    name = form.says("model_name") or (
        "merged_model" if switches["merge_lora"] else PurePosixPath(base_model).name or "model"
    )
    sizes = found.sizes.sizes if found.sizes else {}
    exact = not switches["merge_lora"]  # a merged file says more of itself, and its vocabulary may have grown
    files = [
        FileRow(f"{name}-{quant}.gguf", sizes.get(QuantType(quant)), exact) for quant in types if quant in QUANT_TYPES
    ]
    if form.plain["keep_unquantized"] or not switches["quantize"]:
        # as the base model is hardly ever anything but a 16-bit float
        asked = form.plain["gguf_dtype"]
        dtype = _SIXTEEN_BIT if asked == "auto" else asked.upper()
        size = sizes.get(QuantType(dtype)) if dtype in QUANT_TYPES else None
        files.insert(0, FileRow(f"{name}.gguf", size, exact and asked != "auto"))
    return files


def _adapter_file(form: NewJobForm, switches: Mapping[str, bool], found: Found) -> list[FileRow]:
    if not switches["export_lora"]:
        return []
    name = PurePosixPath(form.checkpoint).name or "checkpoint"
    checkpoint = found.run.listing.find(chosen_name(name, found)) if found.run else None
    label = checkpoint.name if checkpoint else name
    return [FileRow(f"{label}-lora.gguf", checkpoint.weights_bytes if checkpoint else None, exact=False)]


def chosen_name(reference: str, found: Found) -> str:
    """The checkpoint's name that ``latest`` or ``best`` means, where the run is known."""
    listing = found.run.listing if found.run else None
    words = {"latest": listing.latest, "best": listing.best} if listing else {}
    return words.get(reference) or reference


def stages_of(form: NewJobForm, switches: Mapping[str, bool], types: Sequence[str]) -> tuple[StageName, ...]:
    """The stages that the job would have."""
    known = tuple(QuantType(quant) for quant in types if quant in QUANT_TYPES)
    try:
        request = PackagingRequest(imatrix=imatrix_of(form))
    except PackagingError:
        request = PackagingRequest()
    return plan_stages(request, ResolvedOptions(**switches, quant_types=known))

"""From request and template to resolved options: every dependency and exclusion rule, each with its own code.

Pure: no file system, no network. ``plan`` turns the result into stages.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType, FitOptions, QuantTypeField, fits_of
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.recipe import RecipeOptions
from api_client.contract.request import PackagingRequest
from api_client.contract.templates import BUILTIN_TEMPLATES, SWITCHES, Template
from api_client.words.suggestions import did_you_mean, nearest


class ResolvedOptions(BaseModel):
    """What a job will do: the four switches and the quant types, with nothing left open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    merge_lora: bool
    export_gguf: bool
    quantize: bool
    export_lora: bool
    quant_types: tuple[QuantTypeField, ...]


def resolve_request(
    request: PackagingRequest, templates: Mapping[str, Template] = BUILTIN_TEMPLATES
) -> tuple[PackagingRequest, ResolvedOptions]:
    """Fill in what the training task knows, resolve the template and check every rule.

    Raises:
        PackagingError: a code of class ``refuse`` naming the rule that is broken.
    """
    request = fill_from_task(request)
    options = resolve_options(request, find_template(request.template, templates))
    check_inputs(request, options)
    return request, options


def fill_from_task(request: PackagingRequest) -> PackagingRequest:
    """Take base model and output directory from the task where the request names none.

    Raises:
        PackagingError: ``task_not_packageable``.
    """
    if request.task is None:
        return request
    request.task.require_packageable()
    fill = {
        "base_model": request.base_model or request.task.base_model,
        "output_dir": request.output_dir or request.task.output_dir,
    }
    return PackagingRequest.model_validate(request.model_dump(exclude_unset=True) | fill)


def find_template(name: str, templates: Mapping[str, Template] = BUILTIN_TEMPLATES) -> Template:
    """Look a template up by name.

    Raises:
        PackagingError: ``unknown_template``, with the nearest name.
    """
    if name in templates:
        return templates[name]
    suggestion = nearest(name, templates, 0.4)
    raise PackagingError(
        ErrorCode.UNKNOWN_TEMPLATE,
        f"unknown template {name!r}" + did_you_mean(suggestion, quoted=True),
        fields={"template": name, "known": sorted(templates), "suggestion": suggestion},
    )


def resolve_options(request: PackagingRequest, template: Template) -> ResolvedOptions:
    """Apply the request's switches and quant types to its template.

    Raises:
        PackagingError: ``template_locked``, ``quantize_needs_export``, ``merge_excludes_lora_export``,
            ``nothing_to_do``, or one of the quant type codes.
    """
    chosen = request.options.chosen()
    if template.locked and chosen:
        switch = next(iter(chosen))
        raise PackagingError(
            ErrorCode.TEMPLATE_LOCKED,
            f"template {template.name!r} locks {switch!r} (it is {'on' if getattr(template, switch) else 'off'})",
            fields={"template": template.name, "switches": sorted(chosen)},
        )
    switches = {name: chosen.get(name, getattr(template, name)) for name in SWITCHES}
    _check_switches(switches)
    return ResolvedOptions(**switches, quant_types=_quant_types(request, template, switches["quantize"]))


def check_inputs(request: PackagingRequest, options: ResolvedOptions) -> None:
    """Check that the inputs the switches need are named, and that nothing is named which no switch uses.

    Raises:
        PackagingError: ``checkpoint_required``, ``checkpoint_not_adapter`` where the task itself says that it trained
            full weights, ``base_model_required``, ``output_dir_required``, ``imatrix_required``, ``request_invalid``.
    """
    if (options.merge_lora or options.export_lora) and request.checkpoint is None:
        switch = "merge_lora" if options.merge_lora else "export_lora"
        raise PackagingError(
            ErrorCode.CHECKPOINT_REQUIRED, f"{switch} is on and no checkpoint is given", fields={"switch": switch}
        )
    if (options.merge_lora or options.export_lora) and request.task and request.task.finetuning == "full":
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_ADAPTER,
            f"task {request.task.task_id} trained full weights, so there is no adapter to "
            + ("merge" if options.merge_lora else "export"),
            fields={"task_id": request.task.task_id},
        )
    if request.base_model is None:
        raise PackagingError(ErrorCode.BASE_MODEL_REQUIRED, "no base model is given")
    if request.output_dir is None:
        raise PackagingError(ErrorCode.OUTPUT_DIR_REQUIRED, "no output directory is given")
    needing = [quant_type.value for quant_type in options.quant_types if _needs_imatrix(quant_type)]
    needing += ["recipe"] if request.recipe.needs_imatrix else []
    if request.imatrix.mode == "off" and needing:
        raise PackagingError(
            ErrorCode.IMATRIX_REQUIRED,
            f"{', '.join(needing)} cannot be made without an importance matrix, and imatrix is off",
            fields={"quant_types": needing},
        )
    _refuse_unused(request, options)
    if request.fit != FitOptions() and not wants_fit(request, options):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            "fit: has no effect without a fit among the quant types",
            remedy="Add a quant type such as fit:4.5bpw, or drop fit.",
            fields={"field": "fit"},
        )


def wants_evaluation(request: PackagingRequest, options: ResolvedOptions) -> bool:
    """Whether the job's model files are compared with the model they were made from."""
    return options.export_gguf and request.evaluation.level != "off"


def needs_imatrix_stage(request: PackagingRequest, options: ResolvedOptions) -> bool:
    """Whether the job computes or checks an importance matrix."""
    if not options.quantize or request.imatrix.mode == "off":
        return False
    if request.imatrix.mode in ("compute", "file"):
        return True
    return request.recipe.needs_imatrix or any(map(_needs_imatrix, options.quant_types))


def wants_fit(_: PackagingRequest, options: ResolvedOptions) -> bool:
    """Whether a file of the job is fitted to a bound."""
    return bool(fits_of(options.quant_types))


def writes_unquantized(request: PackagingRequest, options: ResolvedOptions) -> bool:
    """Whether the job ever has the unquantized file on its disk: where it is kept, or fits are chosen by what is in it.

    Otherwise quantized files are made of the base model itself.
    """
    return options.export_gguf and (request.keep_unquantized or not options.quantize or wants_fit(request, options))


def _needs_imatrix(quant_type: AnyQuantType) -> bool:
    """A fit is chosen, and made, with a matrix."""
    return not isinstance(quant_type, QuantType) or QUANT_TYPES[quant_type].needs_imatrix


def _refuse_unused(request: PackagingRequest, options: ResolvedOptions) -> None:
    """A field that would silently have no effect is a misunderstanding; say so."""
    for field, given, switch in (
        ("base_precision", request.base_precision != "stored", "merge_lora"),
        ("projector", request.names_projector, "export_gguf"),
        ("draft_head", request.draft_head != "auto", "export_gguf"),
        ("imatrix", request.imatrix.mode in ("compute", "file"), "quantize"),
        ("recipe", request.recipe != RecipeOptions(), "quantize"),
        ("lattice", request.lattice != "off", "quantize"),
        ("save_merged", request.save_merged, "merge_lora"),
        ("evaluation", request.evaluation.is_asked_for, "export_gguf"),
        ("evaluation.min_retention", request.evaluation.min_retention is not None, "merge_lora"),
    ):
        if given and not getattr(options, switch):
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"{field}: has no effect while {switch} is off",
                remedy=f"Drop {field}, or turn {switch} on.",
                fields={"field": field, "switch": switch},
            )


def blocked_switches(switches: Mapping[str, bool]) -> frozenset[str]:
    """Switches that another one keeps off: merging keeps off the adapter's export, no GGUF export quantizing."""
    blocked = {"export_lora"} if switches["merge_lora"] else set()
    return frozenset(blocked if switches["export_gguf"] else blocked | {"quantize"})


def _check_switches(switches: Mapping[str, bool]) -> None:
    wrong = {name for name in blocked_switches(switches) if switches[name]}
    if "export_lora" in wrong:
        raise PackagingError(
            ErrorCode.MERGE_EXCLUDES_LORA_EXPORT, "merge_lora and export_lora are both on; they exclude each other"
        )
    if "quantize" in wrong:
        raise PackagingError(ErrorCode.QUANTIZE_NEEDS_EXPORT, "quantize is on and export_gguf is off")
    if not switches["export_gguf"] and not switches["export_lora"]:
        raise PackagingError(ErrorCode.NOTHING_TO_DO, "export_gguf and export_lora are both off")


def _quant_types(request: PackagingRequest, template: Template, quantize: bool) -> tuple[AnyQuantType, ...]:
    if not quantize:
        if request.quant_types:
            raise PackagingError(
                ErrorCode.QUANT_TYPES_NEED_QUANTIZE,
                f"quant_types {', '.join(request.quant_types)} given while quantize is off",
                fields={"quant_types": list(request.quant_types)},
            )
        return ()
    types = template.quant_types if request.quant_types is None else request.quant_types
    if not types:
        raise PackagingError(ErrorCode.QUANT_TYPES_EMPTY, "quantize is on and quant_types is empty")
    repeated = sorted({quant_type.value for quant_type in types if types.count(quant_type) > 1})
    if repeated:
        raise PackagingError(
            ErrorCode.QUANT_TYPE_DUPLICATE,
            f"quant type {', '.join(repeated)} is named more than once",
            fields={"quant_types": repeated},
        )
    return types

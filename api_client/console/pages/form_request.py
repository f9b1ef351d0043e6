"""From the new job form to a packaging request, and from an error to the field at which the page shows it."""

from __future__ import annotations

from typing import Any, Final

from api_client.console.pages.form import NO_TYPES, PLAIN, NewJobForm
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.field_types import FieldKind, RequestField
from api_client.contract.field_values import nested, typed, value_of
from api_client.contract.locations import is_remote
from api_client.contract.request import PackagingRequest
from api_client.contract.request_fields import CONTROL_OF_CODE, control_of
from api_client.contract.templates import Template

KEY_PREFIX: Final = "console:"
_PATHS: Final = ("run", "base_model", "output_dir", "task_base_model")
_START: Final = NewJobForm()


def field_of(error: PackagingError) -> str | None:
    """The form's field that an error is about; ``None`` where it is about the whole."""
    name = str(error.fields.get("field") or "")
    return CONTROL_OF_CODE.get(error.code) or control_of(name) or (name if name in _PATHS else None)


def build_request(form: NewJobForm, template: Template | None) -> PackagingRequest:
    """The request that the form describes. What is the default is left out, as if the form had not asked.

    Args:
        form: What was filled in.
        template: The chosen template, where it is known.

    Raises:
        PackagingError: ``request_invalid`` naming the field, and what the request raises.
    """
    for name in _PATHS:
        _require_absolute(name, typed(getattr(form, name)))
    data: dict[str, Any] = {
        **_plain_data(form),
        "template": form.template,
        "options": _switches(form, template),
        "base_model": typed(_base_model(form)),
        "checkpoint": _checkpoint(form, template),
        "output_dir": typed(form.output_dir if form.source == "task" else form.own_output_dir),
        "quant_types": _types(form, template),
        "idempotency_key": KEY_PREFIX + form.form if form.form else None,
    }
    return PackagingRequest(**{name: value for name, value in data.items() if value not in (None, "")})


def imatrix_of(form: NewJobForm) -> dict[str, Any]:
    """What the form says of the importance matrix.

    Raises:
        PackagingError: ``request_invalid``.
    """
    values = {
        path.partition(".")[2]: value for path, value in _plain_values(form).items() if path.startswith("imatrix.")
    }
    # The mode that is shown counts: a path beside another one is a mistake, and not a choice.
    return {"mode": form.plain["imatrix"], **values} if values else {}


def _plain_data(form: NewJobForm) -> dict[str, Any]:
    """The fields whose controls come from the table, in their places."""
    data = nested(_plain_values(form))
    data.pop("task", None)
    data["imatrix"] = imatrix_of(form) or None
    return data | {"task": _task(form) if form.source == "task" else None}


def _plain_values(form: NewJobForm) -> dict[str, Any]:
    """By path; of what stands as in a new form, nothing."""
    return {
        row.path: _value(row, form.plain[name]) for name, row in PLAIN.items() if form.plain[name] != _START.plain[name]
    }


def _value(row: RequestField, text: str) -> Any:
    try:
        value = value_of(row.kind, text)
    except ValueError as error:
        reason = f"{error} is not of the form key=value" if row.kind is FieldKind.PAIRS else str(error)
        raise PackagingError(ErrorCode.REQUEST_INVALID, f"{row.path}: {reason}", fields={"field": row.path}) from None
    if row.kind is FieldKind.PATH and value is not None:
        _require_absolute(row.path, value)
    return value


def _switches(form: NewJobForm, template: Template | None) -> dict[str, bool] | None:
    """The switches that the request itself set, and those that are not as the template has them."""
    if template is None or template.locked or not form.switches_shown:
        return None
    given = form.switches_given.split(",")
    chosen = form.chosen_switches(template)
    return {name: on for name, on in chosen.items() if name in given or on != getattr(template, name)} or None


def _types(form: NewJobForm, template: Template | None) -> tuple[str, ...] | None:
    """The ticked types, in the order in which the request named them; nothing where they are the template's."""
    given = form.types_given.split(",") if form.types_given and form.types_given != NO_TYPES else []
    if template is not None and not form.chosen_switches(template)["quantize"]:
        return () if form.types_given == NO_TYPES else None
    if not form.types_shown:
        return None
    usual = {quant_type.value for quant_type in template.quant_types} if template else None
    if not form.types_given and set(form.all_types) == usual:
        return None
    return tuple(sorted(form.all_types, key=lambda name: given.index(name) if name in given else len(given)))


def _base_model(form: NewJobForm) -> str:
    """The base model; with a task that names its own, only where a person named another."""
    return form.own_base_model if form.told_base_model else form.base_model


def _task(form: NewJobForm) -> dict[str, Any]:
    task: dict[str, Any] = {
        row.path.partition(".")[2]: value_of(row.kind, form.plain[name])
        for name, row in PLAIN.items()
        if row.path.startswith("task.")
    }
    task |= {"base_model": typed(form.task_base_model or form.base_model), "output_dir": typed(form.run)}
    missing = next((name for name, value in task.items() if value is None or (value == "" and name != "task_id")), None)
    if missing:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"task.{missing}: is empty", fields={"field": f"task.{missing}"}
        )
    return task


def _checkpoint(form: NewJobForm, template: Template | None) -> str | None:
    """The reference to send: the adapter, else full weights; a path below the run where a run was given."""
    switches = form.chosen_switches(template) if template else {}
    uses_adapter = template is None or switches["merge_lora"] or switches["export_lora"]
    reference = typed(form.checkpoint if uses_adapter else form.weights)
    if "/" in reference:
        _require_absolute("checkpoint", reference)
    if form.source == "run" and reference and "/" not in reference:
        if not form.run:
            raise PackagingError(ErrorCode.REQUEST_INVALID, "run: is empty", fields={"field": "run"})
        return f"{typed(form.run).rstrip('/')}/{reference}"
    return reference or None


def _require_absolute(name: str, path: str) -> None:
    """A relative path would mean something else on the console than on the worker."""
    if path and not path.startswith("/") and not is_remote(path):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"{name}: {path} is not an absolute path or a URL",
            remedy="Write the whole path, as the workers see it, e.g. /runs/42.",
            fields={"field": name},
        )

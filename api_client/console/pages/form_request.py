"""From the new job form to a packaging request, and from an error to the field at which the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from api_client.console.pages.filters import read_labels
from api_client.console.pages.form import NewJobForm
from api_client.errors import ErrorCode, PackagingError
from api_client.locations import is_remote
from api_client.request import PackagingRequest
from api_client.templates import Template

KEY_PREFIX: Final = "console:"
_C = ErrorCode

_FIELD_OF_CODE: Final[dict[ErrorCode, str]] = {
    _C.UNKNOWN_TEMPLATE: "template",
    _C.TEMPLATE_LOCKED: "switches",
    _C.QUANTIZE_NEEDS_EXPORT: "switches",
    _C.MERGE_EXCLUDES_LORA_EXPORT: "switches",
    _C.NOTHING_TO_DO: "switches",
    _C.QUANT_TYPES_NEED_QUANTIZE: "quant_types",
    _C.QUANT_TYPES_EMPTY: "quant_types",
    _C.QUANT_TYPE_UNKNOWN: "quant_types",
    _C.QUANT_TYPE_DUPLICATE: "quant_types",
    _C.IMATRIX_REQUIRED: "quant_types",
    _C.CHECKPOINT_REQUIRED: "checkpoint",
    _C.CHECKPOINT_NOT_ADAPTER: "checkpoint",
    _C.CHECKPOINT_IS_ADAPTER: "checkpoint",
    _C.CHECKPOINT_NOT_FOUND: "checkpoint",
    _C.CHECKPOINTS_EMPTY: "checkpoint",
    _C.BASE_MODEL_REQUIRED: "base_model",
    _C.BASE_MODEL_NOT_FOUND: "base_model",
    _C.OUTPUT_DIR_REQUIRED: "output_dir",
    _C.TASK_NOT_PACKAGEABLE: "task_status",
}
_FIELD_OF_NAME: Final = {
    "task.task_id": "task_id",
    "task.status": "task_status",
    "task.kind": "task_kind",
    "task.finetuning": "finetuning",
    "task.base_model": "base_model",
    "task.output_dir": "run",
    "imatrix.path": "imatrix_path",
}
_PATHS: Final = ("run", "base_model", "output_dir", "imatrix_path")


def field_of(error: PackagingError) -> str | None:
    """The form's field that an error is about; ``None`` where it is about the whole."""
    name = str(error.fields.get("field") or "")
    field = _FIELD_OF_CODE.get(error.code) or _FIELD_OF_NAME.get(name) or name.partition(".")[0]
    return field if field in NewJobForm.__dataclass_fields__ else None


def build_request(form: NewJobForm, template: Template | None) -> PackagingRequest:
    """The request that the form describes.

    Args:
        form: What was filled in.
        template: The chosen template, where it is known.

    Raises:
        PackagingError: ``request_invalid`` naming the field, and what the request raises.
    """
    for name in _PATHS:
        _require_absolute(name, getattr(form, name))
    if form.source == "paths" and "/" in form.checkpoint:
        _require_absolute("checkpoint", form.checkpoint)
    data: dict[str, Any] = {
        "template": form.template,
        "options": _switches(form, template),
        "task": _task(form) if form.source == "task" else None,
        "base_model": form.base_model,
        "checkpoint": _checkpoint(form, template),
        "output_dir": form.own_output_dir,
        "model_name": form.model_name,
        "quant_types": form.chosen_types(template, form.chosen_switches(template)) if template else None,
        "gguf_dtype": form.gguf_dtype,
        "imatrix": {"mode": form.imatrix, "path": form.imatrix_path or None},
        "labels": _labels(form.labels),
        "priority": form.priority,
        "overwrite": bool(form.overwrite),
        "upload": bool(form.upload),
        "keep_unquantized": bool(form.keep_unquantized),
        "idempotency_key": KEY_PREFIX + form.form if form.form else None,
    }
    given = {name: value for name, value in data.items() if value not in (None, "")}
    return PackagingRequest(**given)


def _switches(form: NewJobForm, template: Template | None) -> dict[str, bool] | None:
    if template is None or template.locked or not form.switches_shown:
        return None
    return form.chosen_switches(template)


def _task(form: NewJobForm) -> dict[str, str]:
    task = {
        "task_id": form.task_id,
        "status": form.task_status,
        "kind": form.task_kind,
        "finetuning": form.finetuning,
        "base_model": form.base_model,
        "output_dir": form.run,
    }
    missing = next((name for name in ("task_id", "base_model", "output_dir") if not task[name]), None)
    if missing:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"task.{missing}: is empty", fields={"field": f"task.{missing}"}
        )
    return task


def _checkpoint(form: NewJobForm, template: Template | None) -> str | None:
    """The reference to send: nothing where no switch uses it, a path below the run where a run was given."""
    switches: Mapping[str, bool] = form.chosen_switches(template) if template else {}
    if not form.checkpoint or (template and not (switches["merge_lora"] or switches["export_lora"])):
        return None
    if form.source == "run" and "/" not in form.checkpoint:
        if not form.run:
            raise PackagingError(ErrorCode.REQUEST_INVALID, "run: is empty", fields={"field": "run"})
        return f"{form.run.rstrip('/')}/{form.checkpoint}"
    return form.checkpoint


def _labels(given: str) -> dict[str, str]:
    labels, bad = read_labels(given.splitlines())
    if bad is not None:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"labels: {bad!r} is not of the form key=value", fields={"field": "labels"}
        )
    return labels


def _require_absolute(name: str, path: str) -> None:
    """A relative path would mean something else on the console than on the worker."""
    if path and not path.startswith("/") and not is_remote(path):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"{name}: {path} is not an absolute path or a URL",
            remedy="Write the whole path, as the workers see it, e.g. /runs/42.",
            fields={"field": name},
        )

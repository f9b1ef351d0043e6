"""From flags to a checked request: parsing, then whatever can be known about the paths without the worker.

The worker's ``prepare`` stage is what decides; the checks here spare a round trip where this machine sees the files.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from api_client.checkpoint_files import CheckpointKind
from api_client.checkpoints import checkpoint_kind, list_checkpoints, passed_over, resolve_checkpoint
from api_client.cli.flags import RequestFlags
from api_client.cli.output import Output
from api_client.cli.run_base import checkpoint_from_here, named_by_run
from api_client.errors import ErrorCode, PackagingError
from api_client.locations import CHECKPOINT_WORDS, is_remote
from api_client.request import PackagingRequest
from api_client.rules import check_inputs, fill_from_task, find_template, resolve_options
from api_client.templates import BUILTIN_TEMPLATES, SWITCHES

OTHER_OPTIONS = ("keep_unquantized", "save_merged", "companions", "split_max_size_bytes", "chunks")
"""What ``--set`` takes besides the switches, in any template."""

_ON_OFF = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


def build_request(flags: RequestFlags) -> PackagingRequest:
    """The request that the flags describe.

    Raises:
        PackagingError: ``unknown_field`` for an option of ``--set`` that does not exist, and what the request raises.
    """
    switches, others = parse_options(flags.options or ())
    chunks = others.pop("chunks", None)
    data: dict[str, Any] = {
        "template": flags.template,
        "options": switches,
        "task": read_task(flags.task) if flags.task is not None else None,
        "base_model": flags.base,
        "checkpoint": flags.checkpoint,
        "output_dir": flags.output,
        "model_name": flags.model_name,
        "quant_types": [name for given in flags.quant_type or () for name in given.split(",")] or None,
        "gguf_dtype": flags.gguf_dtype.lower(),
        "imatrix": _imatrix(flags, chunks),
        "overwrite": flags.overwrite,
        "upload": not flags.no_upload,
        "priority": flags.priority,
        "labels": parse_labels(flags.label or ()),
        "idempotency_key": flags.idempotency_key,
        "callback_url": flags.callback_url,
        **others,
    }
    return PackagingRequest(**{name: value for name, value in data.items() if value is not None})


def check_rules(request: PackagingRequest) -> None:
    """Check every rule that needs no service; a site's own template is left to the service.

    Raises:
        PackagingError: of class ``refuse``, naming the rule.
    """
    if request.template in BUILTIN_TEMPLATES:
        filled = fill_from_task(request)
        check_inputs(filled, resolve_options(filled, find_template(filled.template)))


def check_paths(request: PackagingRequest, output: Output, *, sees_files: bool) -> PackagingRequest:
    """Check the paths that are visible here; write ``RUN/latest``, ``RUN/best`` and a directory named from here out.

    Args:
        request: The request.
        output: Told about paths that are not visible.
        sees_files: Whether the worker runs on this machine, so that a missing path is missing there, too.

    Raises:
        PackagingError: ``base_model_not_found``, ``checkpoint_not_found``, ``checkpoints_empty``,
            ``checkpoint_not_adapter``, ``checkpoint_is_adapter``, ``output_dir_not_writable``, ``request_invalid`` for
            other missing files.
    """
    filled = fill_from_task(request)
    _check_base_model(filled, output, sees_files)
    for location, field in ((filled.imatrix.path, "imatrix"), (filled.imatrix.calibration, "calibration")):
        if location is not None and not is_remote(location) and not Path(location).is_file() and sees_files:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID, f"{field}: {location} is not a file", fields={"field": field}
            )
    _check_writable(filled.output_dir, sees_files)
    checkpoint = _check_checkpoint(filled, output, sees_files)
    if checkpoint == request.checkpoint:
        return request
    return PackagingRequest(**request.model_dump(exclude_unset=True) | {"checkpoint": checkpoint})


def parse_options(given: Iterable[str]) -> tuple[dict[str, bool], dict[str, Any]]:
    """Take ``option=value`` pairs apart into switches and other options.

    Raises:
        PackagingError: ``unknown_field`` with a suggestion, ``request_invalid`` for a value that is not on or off.
    """
    switches: dict[str, bool] = {}
    others: dict[str, Any] = {}
    for pair in given:
        name, value = split_pair(pair, "--set", "option=value")
        name = name.replace("-", "_")
        if name in SWITCHES:
            switches[name] = _on_off(name, value)
        elif name in OTHER_OPTIONS:
            others[name] = value if name in ("split_max_size_bytes", "chunks") else _on_off(name, value)
        else:
            raise _unknown_option(name)
    return switches, others


def parse_labels(given: Iterable[str]) -> dict[str, str]:
    """Take ``key=value`` pairs apart.

    Raises:
        PackagingError: ``request_invalid``.
    """
    return dict(split_pair(pair, "--label", "key=value") for pair in given)


def split_pair(pair: str, flag: str, form: str) -> tuple[str, str]:
    """Both sides of ``a=b``.

    Raises:
        PackagingError: ``request_invalid``.
    """
    name, sign, value = pair.partition("=")
    if not sign or not name.strip():
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"{flag} {pair!r} is not of the form {form}", fields={"field": flag}
        )
    return name.strip(), value.strip()


def read_task(name: str) -> dict[str, Any]:
    """The training task in a JSON file; ``-`` is standard input.

    Raises:
        PackagingError: ``request_invalid``, naming the file.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        task = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"is not JSON: {error}"
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"--task {name}: {reason}", fields={"field": "task", "path": name}
        ) from error
    if not isinstance(task, dict):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"--task {name}: holds no JSON object", fields={"field": "task", "path": name}
        )
    return task


def _imatrix(flags: RequestFlags, chunks: str | None) -> Any:
    if flags.calibration is None and chunks is None:
        return flags.imatrix
    mode = flags.imatrix if flags.imatrix in ("auto", "compute", "off") else None
    path = flags.imatrix if mode is None else None
    parts = {"mode": mode, "path": path, "calibration": flags.calibration, "chunks": chunks}
    return {name: value for name, value in parts.items() if value is not None}


def _on_off(name: str, value: str) -> bool:
    if value.lower() not in _ON_OFF:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"--set {name}={value}: the value must be on or off",
            fields={"field": f"options.{name}", "input": value},
        )
    return _ON_OFF[value.lower()]


def _unknown_option(name: str) -> PackagingError:
    known = [*SWITCHES, *OTHER_OPTIONS]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return PackagingError(
        ErrorCode.UNKNOWN_FIELD,
        f"--set: unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        remedy=f"Known names: {', '.join(known)}.",
        fields={"field": f"options.{name}", "suggestion": close[0] if close else None},
    )


def _check_base_model(filled: PackagingRequest, output: Output, sees_files: bool) -> None:
    location = filled.base_model
    if location is None or is_remote(location) or Path(location).is_dir():
        return
    if not sees_files:
        output.say(output.text("not_visible", field="base_model", path=location), style="yellow")
        return
    if Path(location).exists() or not _is_named_elsewhere(filled):
        reason = "is not a directory" if Path(location).exists() else "does not exist"
        raise PackagingError(
            ErrorCode.BASE_MODEL_NOT_FOUND,
            f"base_model: {location} {reason}",
            fields={"field": "base_model", "path": location},
        )


def _is_named_elsewhere(filled: PackagingRequest) -> bool:
    """Whether the worker will find a base model that has moved: by the adapter's files or the run's."""
    return any(Path(one.location).is_absolute() and Path(one.location).is_dir() for one in named_by_run(filled))


def _check_writable(location: str | None, sees_files: bool) -> None:
    if location is None or is_remote(location) or not sees_files:
        return
    path = Path(location)
    existing = next(one for one in (path, *path.parents) if one.exists())
    if not existing.is_dir():
        reason = f"{existing} is not a directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing} is not writable"
    else:
        return
    raise PackagingError(
        ErrorCode.OUTPUT_DIR_NOT_WRITABLE, f"output_dir: {location}: {reason}", fields={"path": location}
    )


def _check_checkpoint(filled: PackagingRequest, output: Output, sees_files: bool) -> str | None:
    """The checkpoint to submit: a word below a path is written out, everything else stays."""
    reference, run_dir = checkpoint_from_here(filled)
    if reference is None or is_remote(reference):
        return reference
    is_path = "/" in reference
    if not is_path and (run_dir is None or is_remote(run_dir)):
        return reference
    where = Path(reference).parent if is_path else Path(str(run_dir))
    if not sees_files and not where.is_dir():
        output.say(output.text("not_visible", field="checkpoint", path=reference), style="yellow")
        return reference
    try:
        path = resolve_checkpoint(reference, run_dir)
    except PackagingError as error:
        raise error if is_path or filled.task else _not_in_output_dir(reference, error) from error
    _check_kind(filled, path)
    if Path(reference).name in CHECKPOINT_WORDS:
        for one in passed_over(list_checkpoints(path.parent), path.name):
            output.say(output.text("passed_over", name=one.name, chosen=path.name, problem=one.problem), style="yellow")
    return str(path) if is_path and not Path(reference).exists() else reference


def _not_in_output_dir(reference: str, error: PackagingError) -> PackagingError:
    """Who gave no task may not know where a word or a bare name is looked up."""
    return PackagingError(
        error.code,
        f"checkpoint {reference!r}, looked up in the output directory: {error.message}",
        remedy=f"Give a path, e.g. /runs/42/{reference}, or the task with --task.",
        fields=error.fields,
    )


def _check_kind(filled: PackagingRequest, path: Path) -> None:
    if filled.template not in BUILTIN_TEMPLATES:
        return
    options = resolve_options(filled, find_template(filled.template))
    uses_adapter = options.merge_lora or options.export_lora
    kind = checkpoint_kind(path)
    if not uses_adapter and kind is CheckpointKind.ADAPTER:
        raise PackagingError(
            ErrorCode.CHECKPOINT_IS_ADAPTER,
            f"{path} is an adapter, and template {filled.template!r} neither merges nor exports it",
            fields={"checkpoint": str(path), "template": filled.template},
        )
    if uses_adapter and kind is CheckpointKind.FULL:
        raise PackagingError(
            ErrorCode.CHECKPOINT_NOT_ADAPTER,
            f"{path} holds full weights, and template {filled.template!r} needs an adapter",
            fields={"checkpoint": str(path)},
        )

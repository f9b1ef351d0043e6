"""From flags to a checked request: parsing, then whatever can be known about the paths without the worker.

The worker's ``prepare`` stage is what decides; the checks here spare a round trip where this machine sees the files.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from api_client.cli.flags import SET_PATH, RequestFlags
from api_client.cli.output import Output
from api_client.cli.run_base import checkpoint_from_here, named_by_run, suggested_base
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.field_types import FieldGroup, FieldKind, RequestField
from api_client.contract.field_values import nested, read_pair, read_size, value_at
from api_client.contract.locations import CHECKPOINT_WORDS, is_remote
from api_client.contract.request import PackagingRequest
from api_client.contract.request_fields import FIELD_OF, FIELDS
from api_client.contract.rules import check_inputs, fill_from_task, find_template, resolve_options
from api_client.contract.templates import BUILTIN_TEMPLATES
from api_client.runs.checkpoints import checkpoint_kind, list_checkpoints, passed_over, resolve_checkpoint
from api_client.runs.kinds import CheckpointKind
from api_client.words.suggestions import did_you_mean, nearest

_SET_KINDS: Final = (FieldKind.SWITCH, FieldKind.NUMBER, FieldKind.FRACTION, FieldKind.SIZE)
_SETTABLE: Final = {
    row.path.rpartition(".")[2]: row
    for row in sorted(FIELDS, key=lambda row: not row.path.startswith(f"{SET_PATH}."))
    if row.group is FieldGroup.HOW and row.kind in _SET_KINDS
}
"""What ``--set`` takes, by name: the switches, and in any template every other option that is on, off or a number."""
_DEFAULTS: Final = PackagingRequest()
_ON_OFF = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


def build_request(flags: RequestFlags) -> PackagingRequest:
    """The request that the flags describe. What is the default is left out, as if no flag had said it.

    Raises:
        PackagingError: ``unknown_field`` for an option of ``--set`` that does not exist, and what the request raises.
    """
    values: dict[str, Any] = {}
    for path, given in flags.values.items():
        values |= _values(FIELD_OF[path], given)
    for path, file in flags.files.items():
        values[path] = (*values.get(path, ()), *read_lines(FIELD_OF[path], file))
    set_there = {path: value for path, value in values.items() if value != default_at(path)}
    return PackagingRequest(**nested(set_there))


def default_at(path: str) -> Any:
    """What a request has at a path where nothing is said."""
    return value_at(_DEFAULTS, path)


def _values(row: RequestField, given: Any) -> dict[str, Any]:
    """What a flag says, by path."""
    if row.path == SET_PATH:
        return parse_options(given)
    if row.path == "imatrix":
        modes = FIELD_OF["imatrix.mode"].choices
        return {"imatrix.mode" if given in modes and given != "file" else "imatrix.path": given}
    return {row.path: _value(row, given)}


def _value(row: RequestField, given: Any) -> Any:
    """The value that a flag says; a text stays one, as the request reads it by itself."""
    if row.kind is FieldKind.SWITCH:
        return bool(given) != default_at(row.path)
    if row.kind is FieldKind.LIST:
        return [name for names in given for name in names.split(",")] or None
    if row.kind is FieldKind.PAIRS:
        return parse_pairs(row, given)
    if row.kind is FieldKind.PARTS:
        return read_task(given)
    if row.kind is FieldKind.SIZE:
        return _size(row, given)
    return given.lower() if row.kind is FieldKind.CHOICE else given


def check_rules(request: PackagingRequest) -> None:
    """Check every rule that needs no service; a site's own template is left to the service.

    Raises:
        PackagingError: of class ``refuse``, naming the rule.
    """
    if request.template in BUILTIN_TEMPLATES:
        filled = fill_from_task(request)
        check_inputs(filled, resolve_options(filled, find_template(filled.template)))


def check_checkpoint_exists(request: PackagingRequest) -> None:
    """Report a local checkpoint that is not there as that, before what it would have named is missed.

    Raises:
        PackagingError: ``checkpoint_not_found``, ``checkpoints_empty``.
    """
    filled = fill_from_task(request)
    reference, run_dir = checkpoint_from_here(filled)
    if reference is not None and "/" in reference and not is_remote(reference):
        resolve_checkpoint(reference, run_dir)


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
    checkpoint = _check_checkpoint(filled, output, sees_files)
    _check_base_model(filled, output, sees_files)
    for path in ("imatrix.path", "imatrix.calibration"):
        location = value_at(filled, path)
        if location is not None and not is_remote(location) and not Path(location).is_file() and sees_files:
            raise PackagingError(ErrorCode.REQUEST_INVALID, f"{path}: {location} is not a file", fields={"field": path})
    _check_writable(filled.output_dir, sees_files)
    if checkpoint == request.checkpoint:
        return request
    return PackagingRequest(**request.model_dump(exclude_unset=True) | {"checkpoint": checkpoint})


def parse_options(given: Iterable[str]) -> dict[str, Any]:
    """Take ``option=value`` pairs apart into values by path.

    Raises:
        PackagingError: ``unknown_field`` with a suggestion, ``request_invalid`` for a value that is not on or off.
    """
    values: dict[str, Any] = {}
    for pair in given:
        name, value = split_pair(pair, "--set", "option=value")
        row = _SETTABLE.get(name.replace("-", "_"))
        if row is None:
            raise _unknown_option(name.replace("-", "_"))
        if row.kind is FieldKind.SWITCH:
            values[row.path] = _on_off(row, name, value)
        else:
            values[row.path] = _size(row, value) if row.kind is FieldKind.SIZE else value
    return values


def parse_labels(given: Iterable[str]) -> dict[str, str]:
    """Take the pairs of labels apart.

    Raises:
        PackagingError: ``request_invalid``.
    """
    return parse_pairs(FIELD_OF["labels"], given)


def parse_pairs(row: RequestField, given: Iterable[str]) -> dict[str, str]:
    """Take the ``key=value`` pairs of a flag apart.

    Raises:
        PackagingError: ``request_invalid``.
    """
    assert row.flag is not None, "only what has a flag is given by one"
    return dict(split_pair(pair, row.flag.name, "key=value") for pair in given)


def split_pair(pair: str, flag: str, form: str) -> tuple[str, str]:
    """Both sides of ``a=b``.

    Raises:
        PackagingError: ``request_invalid``.
    """
    try:
        return read_pair(pair)
    except ValueError:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"{flag} {pair!r} is not of the form {form}", fields={"field": flag}
        ) from None


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


def read_lines(row: RequestField, file: Path) -> tuple[str, ...]:
    """What a file of lines says; blanks and line ends part them.

    Raises:
        PackagingError: ``request_invalid``, naming the file.
    """
    try:
        return tuple(file.read_text("utf-8").split())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"{row.file_flag.name if row.file_flag else row.path} {file}: {reason}",
            fields={"field": row.path, "path": str(file)},
        ) from error


def _on_off(row: RequestField, name: str, value: str) -> bool:
    if value.lower() not in _ON_OFF:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"--set {name}={value}: the value must be on or off",
            fields={"field": row.path, "input": value},
        )
    return _ON_OFF[value.lower()]


def _size(row: RequestField, text: str) -> int:
    try:
        return read_size(text)
    except ValueError as error:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"{row.path}: {error}", fields={"field": row.path, "input": text}
        ) from None


def _unknown_option(name: str) -> PackagingError:
    own = next((row for row in FIELDS if row.flag and name in (row.path, row.path.replace(".", "_"))), None)
    if own is not None and own.flag is not None:
        return PackagingError(
            ErrorCode.UNKNOWN_FIELD,
            f"--set does not take {name!r}, which has a flag of its own",
            remedy=f"Use {own.flag.name}.",
            fields={"field": own.path, "suggestion": own.flag.name},
        )
    suggestion = nearest(name, _SETTABLE, 0.5)
    return PackagingError(
        ErrorCode.UNKNOWN_FIELD,
        f"--set: unknown option {name!r}" + did_you_mean(suggestion, quoted=True),
        remedy=f"Known names: {', '.join(_SETTABLE)}.",
        fields={"field": f"options.{name}", "suggestion": suggestion},
    )


def _check_base_model(filled: PackagingRequest, output: Output, sees_files: bool) -> None:
    location = filled.base_model
    if location is None or is_remote(location) or Path(location).is_dir():
        return
    if not sees_files:
        output.say(output.text("not_visible", field="base_model", path=location), style="yellow")
        return
    derived = filled.task is not None and filled.task.base_model == location
    if not Path(location).exists() and derived and _is_named_elsewhere(filled):
        return
    meant = suggested_base(filled)
    reason = "is not a directory" if Path(location).exists() else f"does not exist{did_you_mean(meant)}"
    raise PackagingError(
        ErrorCode.BASE_MODEL_NOT_FOUND,
        f"base_model: {location} {reason}",
        fields={"field": "base_model", "path": location, "suggestion": meant},
    )


def _is_named_elsewhere(filled: PackagingRequest) -> bool:
    """Whether the worker will find the base model of a task that has moved: by the adapter's files or the run's."""
    return any(Path(named.location).is_absolute() and Path(named.location).is_dir() for named in named_by_run(filled))


def _check_writable(location: str | None, sees_files: bool) -> None:
    if location is None or is_remote(location) or not sees_files:
        return
    path = Path(location)
    existing = next(place for place in (path, *path.parents) if place.exists())
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
        for saved in passed_over(list_checkpoints(path.parent), path.name):
            output.say(
                output.text("passed_over", name=saved.name, chosen=path.name, problem=saved.problem), style="yellow"
            )
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

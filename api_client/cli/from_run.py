"""A request from one place: what is packaged, from which base, by which template, and where it goes. Flags decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api_client.cli.flags import RequestFlags
from api_client.cli.output import Output
from api_client.cli.requests import build_request, check_checkpoint_exists, check_paths, check_rules
from api_client.cli.run_base import fill_base_model
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.locations import is_remote
from api_client.contract.outputs import QUALITY, RECORDS, InputNames, planned_outputs
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import fill_from_task, find_template, resolve_options
from api_client.contract.templates import BUILTIN_TEMPLATES
from api_client.runs.base_models import first_usable, named_base_models
from api_client.runs.checkpoint_names import is_checkpoint_name
from api_client.runs.checkpoints import list_checkpoints
from api_client.runs.files import LocalRunFiles, RunFiles
from api_client.runs.kinds import CheckpointKind
from api_client.runs.pick import Picked, Why, pick
from api_client.runs.s3_files import S3RunFiles
from api_client.s3 import settings_from_here
from api_client.words.formatting import format_score

_SHARED = RECORDS | {QUALITY.kind}
_WITHOUT_ADAPTER = "quantize_base"
_DECIDES_INPUTS = ("base_model", "checkpoint", "task")


def asked_for(run: str | None, flags: RequestFlags, output: Output, *, sees_files: bool) -> PackagingRequest:
    """The request that a command line means, checked as far as this machine can.

    The checkpoint is looked at before the base model: the base is often known by the checkpoint alone.

    Args:
        run: The place that it names beside its flags.
        flags: Its flags.
        output: Told what is filled in.
        sees_files: Whether the workers run on this machine.

    Raises:
        PackagingError: what the request, its rules and its paths raise.
    """
    request = build_request(flags)
    place = place_meant(run, flags)
    if place is not None:
        request = complete(request, place, flags, output, sees_files=sees_files)
    if sees_files:
        check_checkpoint_exists(request)
    request = fill_base_model(request, output)
    check_rules(request)
    request = check_paths(request, output, sees_files=sees_files)
    if sees_files:
        _check_free(request)
    return request


def _check_free(request: PackagingRequest) -> None:
    """Refuse now what ``prepare`` would refuse. With an idempotency key the files may be the job's own."""
    filled = fill_from_task(request)
    names = taken(filled, filled.output_dir) if filled.output_dir and filled.idempotency_key is None else []
    if names:
        raise PackagingError(
            ErrorCode.OUTPUT_EXISTS,
            f"{filled.output_dir} has {', '.join(names)} already",
            fields={"path": filled.output_dir, "names": names},
        )


def open_run(place: str) -> RunFiles:
    """The files below a local directory or an ``s3://`` prefix."""
    return S3RunFiles(place, settings_from_here()) if place.startswith("s3://") else LocalRunFiles(Path(place))


def location_of(place: str) -> str:
    """A place as the command line got it, absolute.

    Raises:
        PackagingError: ``request_invalid`` for ``hf://``, of which nothing can be told without fetching it.
    """
    if place.startswith("s3://"):
        return place.rstrip("/")
    if is_remote(place):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"{place}: whether a repository holds a model or an adapter is not known before it is fetched",
            remedy=f"Say which: --base {place} -t {_WITHOUT_ADAPTER}, or --checkpoint {place}.",
            fields={"path": place},
        )
    return str(Path(place).expanduser().absolute())


def run_of(place: str) -> str:
    """The run that a place means: the one above a checkpoint, and the place itself otherwise."""
    above, _, name = place.rpartition("/")
    return above if is_checkpoint_name(name) and above else place


def place_meant(run: str | None, flags: RequestFlags) -> str | None:
    """The place that a command line means: the one given, else the working directory where no flag names an input."""
    if run is not None:
        return location_of(run)
    if any(path in flags.values for path in _DECIDES_INPUTS):
        return None
    here = str(Path.cwd())
    if list_checkpoints(open_run(here)).checkpoints:
        return here  # a run; what is wrong with it is told
    try:
        pick(here, open_run)
    except PackagingError:
        return None
    return here


def complete(
    request: PackagingRequest, place: str, flags: RequestFlags, output: Output, *, sees_files: bool
) -> PackagingRequest:
    """Fill in what the flags leave open.

    Args:
        request: What the flags say.
        place: A run, a checkpoint or a model; a path or a URL.
        flags: Decide which of it may be filled in.
        output: Told what is chosen, and why.
        sees_files: Whether the workers run on this machine.

    Raises:
        PackagingError: as ``pick``; ``request_invalid`` for a place that this machine does not see.
    """
    if not sees_files and not is_remote(place) and not Path(place).exists():
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"{place} is not on this machine, and the workers are on another",
            remedy="Give --base, --checkpoint and --output as the workers see them.",
            fields={"path": place},
        )
    reference = request.checkpoint
    picked = pick(place, open_run, reference if reference and "/" not in reference else None)
    output.say(_told(picked, output))
    values: dict[str, Any] = {}
    if "template" not in flags.values and picked.kind is CheckpointKind.FULL:
        values["template"] = _WITHOUT_ADAPTER
    if reference is None or "/" not in reference:
        values |= _inputs(PackagingRequest(**request.model_dump(exclude_unset=True) | values), picked)
    if request.base_model is None and request.task is None and values.get("base_model") is None:
        values["base_model"] = named_base(picked, output)
    filled = PackagingRequest(**request.model_dump(exclude_unset=True) | values)
    if request.output_dir is None and request.task is None:
        chosen = _free(filled, picked.output_dir)
        filled = PackagingRequest(**filled.model_dump(exclude_unset=True) | {"output_dir": chosen})
        output.say(output.text("goes_to", path=chosen))
    return filled


def _inputs(request: PackagingRequest, picked: Picked) -> dict[str, Any]:
    """Checkpoint and base model by what was picked, and by whether the template has a use for an adapter."""
    if picked.kind is CheckpointKind.ADAPTER:
        return {"checkpoint": picked.location if _uses_adapter(request) else None}
    if picked.is_step:
        # full weights stand in the base model's place; the rules ask for one all the same
        return {"checkpoint": picked.location, "base_model": request.base_model or picked.location}
    return {"checkpoint": None, "base_model": request.base_model or picked.location}


def _uses_adapter(request: PackagingRequest) -> bool:
    if request.template not in BUILTIN_TEMPLATES:
        return True
    options = resolve_options(request, find_template(request.template))
    return options.merge_lora or options.export_lora


def named_base(picked: Picked, output: Output) -> str | None:
    """The base model that the adapter or its run names: the first that is here, else the first."""
    inside = picked.location.removeprefix(picked.run).strip("/")
    base = first_usable(named_base_models(open_run(picked.run), inside))
    if base is None:
        return None
    output.say(output.text("base_taken", base=base.location, file=base.file))
    return base.location


def _told(picked: Picked, output: Output) -> str:
    """Which one it is and why, in a line."""
    count = sum(checkpoint.usable for checkpoint in picked.listing.checkpoints)
    chosen = picked.listing.find(picked.name)
    metric = picked.listing.metric
    score = chosen.scores.get(metric) if chosen is not None and metric is not None else None
    if picked.why is Why.BEST and score is not None:
        return output.text("picked_score", name=picked.name, metric=metric, score=format_score(score), count=count)
    key = f"picked_{picked.kind.value}" if picked.why is Why.ITSELF else f"picked_{picked.why.value}"
    return output.text(key, name=picked.name, count=count)


def _free(request: PackagingRequest, directory: str) -> str:
    """The directory, or the first numbered one beside it in which no file would stand in the way."""
    number, place = 1, directory
    while taken(request, place):
        number += 1
        place = f"{directory}-{number}"
    return place


def taken(request: PackagingRequest, directory: str) -> list[str]:
    """Names of the request's files that are taken in a local directory; those that jobs share are none of them.

    Nor is another job's quality report, which publishing puts aside.
    """
    if is_remote(directory) or request.template not in BUILTIN_TEMPLATES or request.overwrite:
        return []
    options = resolve_options(request, find_template(request.template))
    planned = planned_outputs(request, options, InputNames.of(request, options))
    return [
        output.name for output in planned if output.kind not in _SHARED and (Path(directory) / output.name).exists()
    ]

"""A request from its own flags is the request; every flag and every completion comes from the table."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from hypothesis import HealthCheck, given, settings

from api_client.cli.app import build_app
from api_client.cli.flags import SET_PATH, RequestFlags, flag_parameters
from api_client.cli.requests import build_request, default_at
from api_client.contract.errors import PackagingError
from api_client.contract.field_types import FieldKind
from api_client.contract.field_values import pair_text, value_at
from api_client.contract.request import ImatrixOptions, PackagingRequest
from api_client.contract.request_fields import FIELDS
from tests.any_request import requests

SUBMIT = typer.main.get_command(build_app()).commands["submit"]  # type: ignore[attr-defined]


def command_line(request: PackagingRequest, task_file: Path) -> Iterator[str]:
    """The request in flags, each with its value behind a sign, so that none is taken for a flag."""
    for row in FIELDS:
        value = value_at(request, row.path)
        if value == default_at(row.path):
            continue
        if row.path.startswith(f"{SET_PATH}."):
            yield f"--set={row.path.partition('.')[2]}={'on' if value else 'off'}"
        elif row.flag is None or row.path == SET_PATH:
            continue
        elif isinstance(value, ImatrixOptions):
            yield f"{row.flag.name}={value.path or value.mode}"
        elif row.kind is FieldKind.PARTS:
            task_file.write_text(json.dumps(value.model_dump(mode="json")), "utf-8")
            yield f"{row.flag.name}={task_file}"
        elif row.kind is FieldKind.PAIRS:
            yield from (f"{row.flag.name}={pair_text(key, text)}" for key, text in value.items())
        elif row.kind in (FieldKind.LIST, FieldKind.LINES):
            yield from (f"{row.flag.name}={name}" for name in value)
        else:
            yield row.flag.name if row.kind is FieldKind.SWITCH else f"{row.flag.name}={value}"


def parse(*line: str) -> PackagingRequest:
    context = SUBMIT.make_context("submit", list(line))
    names = [parameter.name for parameter in flag_parameters()]
    given = {name: context.params[name] for name in names}
    return build_request(RequestFlags.of(given, lambda name: context.get_parameter_source(name).name != "DEFAULT"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=requests())
def test_a_request_from_its_own_flags_is_the_request(request: PackagingRequest) -> None:
    if request.quant_types == ():  # a flag that may be repeated cannot say that there is none
        request = request.model_copy(update={"quant_types": None})
    with tempfile.TemporaryDirectory() as directory:
        again = parse(*command_line(request, Path(directory, "task.json")))
    assert again == request


def test_no_flag_says_nothing() -> None:
    """What is the default is not stored, so that an older worker can run what a newer client sends."""
    assert parse().model_fields_set == set()
    assert parse("--template", "merge_quantize", "--gguf-dtype", "auto").model_fields_set == set()


def test_twins_of_a_switch_mean_it_and_contraries_are_refused() -> None:
    assert parse("--keep-unquantized").model_fields_set == set()
    assert parse("--no-keep-unquantized").keep_unquantized is False
    for line in (["--companions"], ["--model-card"], ["--ollama"], ["--ollama", "--model-card", "--companions"]):
        assert parse(*line) == PackagingRequest(companions=True)
    with pytest.raises(PackagingError) as caught:
        parse("--no-keep-unquantized", "--keep-unquantized")
    assert caught.value.fields["field"] == "keep_unquantized"


def test_every_field_has_a_flag() -> None:
    with_flags = {row.path.partition(".")[0] for row in FIELDS if row.flag}
    assert with_flags == set(PackagingRequest.model_fields)

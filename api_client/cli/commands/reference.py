"""``checkpoints``, ``templates`` and ``quant-types``: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from api_client.cli.command import add_command
from api_client.cli.failures import BAD_REQUEST, DONE
from api_client.cli.from_run import location_of, open_run, run_of
from api_client.cli.output import Output
from api_client.cli.render.lists import checkpoints_view, quant_types_table, templates_table
from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.templates import BUILTIN_TEMPLATES
from api_client.runs.checkpoints import empty_error, list_checkpoints

_SITE_TIMEOUT_S = 1.0


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    add_command(app, checkpoints, panel=panel)
    add_command(app, templates, panel=panel)
    add_command(app, quant_types, name="quant-types", panel=panel)


def checkpoints(
    output: Output,
    *,
    run: Annotated[
        str,
        typer.Argument(metavar="[RUN]", help="Output directory of a training run, or s3://; the working directory."),
    ] = ".",
) -> int:
    """List a run's checkpoints with their scores.

    Of a checkpoint it is the run that it belongs to.

    Says which is latest, best, and the last before early stopping. Exits 2 if there is none that can be packaged.
    """
    listing = list_checkpoints(open_run(run_of(location_of(run))))
    error = empty_error(listing)
    if output.as_json:
        output.document(listing if error is None else {**listing.model_dump(mode="json"), "error": error.to_dict()})
    else:
        output.show(*checkpoints_view(output, listing, output.results.width))
    return DONE if error is None else BAD_REQUEST


def templates(output: Output) -> int:
    """List the templates.

    The built-in ones, and this site's own where the service can be reached. Only custom leaves its switches free.
    """
    known = dict(BUILTIN_TEMPLATES)
    try:
        with open_client(timeout_s=_SITE_TIMEOUT_S) as client:
            known = client.templates()
    except PackagingError as error:
        if error.code is not ErrorCode.REDIS_UNREACHABLE:
            raise
    ordered = [*BUILTIN_TEMPLATES.values(), *(t for name, t in known.items() if name not in BUILTIN_TEMPLATES)]
    if output.as_json:
        output.document({"templates": ordered})
    else:
        output.show(templates_table(output, ordered, output.results.width))
    return DONE


def quant_types(
    output: Output,
    *,
    recommended: Annotated[bool, typer.Option("--recommended", metavar="", help="Only the recommended ones.")] = False,
) -> int:
    """List the quant types.

    The recommended ones are marked *. Bits per weight are those of an 8B Llama.
    """
    types = [quant_type for quant_type in QuantType if not recommended or QUANT_TYPES[quant_type].recommended]
    if output.as_json:
        rows = [{"name": quant_type.value, **QUANT_TYPES[quant_type]._asdict()} for quant_type in types]
        output.document({"quant_types": rows})
    else:
        output.show(quant_types_table(output, types, output.results.width))
    return DONE

"""The flags of ``submit`` and ``package``, defined once: both commands take every field of :class:`RequestFlags`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from api_client.quant_types import QUANT_TYPES, QuantType
from api_client.templates import BUILTIN_TEMPLATES, DEFAULT_TEMPLATE

_WHAT, _OPTIONS, _QUEUE = "What to package", "How", "Queueing"


def complete_template(incomplete: str) -> Iterator[tuple[str, str]]:
    """Template names for the shell."""
    for template in BUILTIN_TEMPLATES.values():
        if template.name.startswith(incomplete):
            yield template.name, template.title_en


def complete_quant_type(incomplete: str) -> Iterator[tuple[str, str]]:
    """Quant type names for the shell."""
    for quant in QuantType:
        if quant.value.startswith(incomplete):
            yield quant.value, QUANT_TYPES[quant].description_en


@dataclass(frozen=True)
class RequestFlags:
    """Values of the flags as typed; ``requests.build_request`` makes a request of them."""

    template: Annotated[
        str,
        typer.Option(
            "--template",
            "-t",
            help="Template.",
            rich_help_panel=_WHAT,
            autocompletion=complete_template,
            metavar="NAME",
        ),
    ] = DEFAULT_TEMPLATE
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            "-b",
            help="Base model: directory, s3:// or hf://; the one that the checkpoint names if left out.",
            rich_help_panel=_WHAT,
            metavar="PATH",
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Checkpoint: directory, RUN/latest, RUN/best, s3://; with --task also latest, best or a name.",
            rich_help_panel=_WHAT,
            metavar="PATH",
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Output directory or s3://.", rich_help_panel=_WHAT, metavar="PATH"),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Training task as a JSON file (- for standard input); fills in base model and output directory.",
            rich_help_panel=_WHAT,
            metavar="FILE",
        ),
    ] = None
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name", help="Name of the files instead of merged_model.", rich_help_panel=_WHAT, metavar="NAME"
        ),
    ] = None
    quant_type: Annotated[
        list[str] | None,
        typer.Option(
            "--quant-type",
            "-q",
            help="Quant type, e.g. Q4_K_M; may be repeated or separated by commas.",
            rich_help_panel=_OPTIONS,
            autocompletion=complete_quant_type,
            metavar="TYPE",
        ),
    ] = None
    gguf_dtype: Annotated[
        str,
        typer.Option(
            "--gguf-dtype",
            help="Type of the unquantized file: auto (the base model's), f32, f16, bf16.",
            rich_help_panel=_OPTIONS,
            autocompletion=lambda: ["auto", "f32", "f16", "bf16"],
            metavar="DTYPE",
        ),
    ] = "auto"
    imatrix: Annotated[
        str | None,
        typer.Option(
            "--imatrix",
            help="Importance matrix: a file, auto, compute or off.",
            rich_help_panel=_OPTIONS,
            metavar="FILE",
        ),
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="Text to compute the importance matrix from.",
            rich_help_panel=_OPTIONS,
            metavar="FILE",
        ),
    ] = None
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An option, e.g. export_lora=on; the four switches only with --template custom. May be repeated.",
            rich_help_panel=_OPTIONS,
            metavar="OPTION=VALUE",
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", metavar="", help="Replace files of another job.", rich_help_panel=_OPTIONS),
    ] = False
    no_upload: Annotated[
        bool,
        typer.Option("--no-upload", metavar="", help="Keep outputs out of object storage.", rich_help_panel=_OPTIONS),
    ] = False
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            "-l",
            help="Label to find the job by. May be repeated.",
            rich_help_panel=_QUEUE,
            metavar="KEY=VALUE",
        ),
    ] = None
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority", help="0 to 9; 9 is the most urgent, 5 the default.", rich_help_panel=_QUEUE, metavar="N"
        ),
    ] = None
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            help="Submitting again with the same key gives the same job.",
            rich_help_panel=_QUEUE,
            metavar="KEY",
        ),
    ] = None
    callback_url: Annotated[
        str | None,
        typer.Option(
            "--callback-url",
            help="Where the job's end is announced: http(s)://; signed, see the documentation.",
            rich_help_panel=_QUEUE,
            metavar="URL",
        ),
    ] = None

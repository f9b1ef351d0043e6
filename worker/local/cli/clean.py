"""``clean``: removing what trainpack keeps on this machine, after saying what and how much."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE, JOB_FAILED
from api_client.cli.output import Output
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.words.formatting import format_size
from api_client.words.suggestions import did_you_mean, nearest
from worker.local.clean import KeptPart, LeftOver, find_left, remove

CLEAN_EXAMPLES = """[bold]Examples[/bold]

  trainpack clean --dry-run

  trainpack clean /runs --only scratch --yes
"""


def clean(
    output: Output,
    *,
    places: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Where jobs wrote, to find what they left there.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="scratch, cache, demo or storage. May be repeated.",
            autocompletion=lambda: [part.value for part in KeptPart],
            metavar="PART",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")] = False,
) -> int:
    """Remove what trainpack keeps on this machine: scratch, caches, the demo, the embedded storage.

    Says what and how much, and asks. Outputs stay. The stack must not be running.
    """
    with needs_extra("worker,embedded"):
        from config.settings import load_settings
    settings = load_settings()
    parts = {_part(name) for name in only or ()} or {*KeptPart}
    searched = [path.expanduser().absolute() for path in places or ()]
    left_overs = [left for left in find_left(settings.home, settings.kernels_dir, searched) if left.part in parts]
    total = format_size(sum(left.size_bytes for left in left_overs))
    if not output.as_json:
        _show(output, left_overs)
    if dry_run or not left_overs or not (yes or _agreed(output, total)):
        if output.as_json:
            output.document({"found": [_document(left) for left in left_overs], "removed": []})
        return DONE
    gone = remove(settings.home, left_overs)
    if output.as_json:
        output.document(
            {"found": [_document(left) for left in left_overs], "removed": [_document(left) for left in gone]}
        )
    else:
        output.say(output.text("cleaned", size=format_size(sum(left.size_bytes for left in gone))))
    return DONE if len(gone) == len(left_overs) else JOB_FAILED


def _part(name: str) -> KeptPart:
    try:
        return KeptPart(name)
    except ValueError:
        known = [part.value for part in KeptPart]
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"--only {name}: no such part" + did_you_mean(nearest(name, known)),
            remedy=f"Known: {', '.join(known)}.",
            fields={"field": "only"},
        ) from None


def _show(output: Output, left_overs: list[LeftOver]) -> None:
    if not left_overs:
        output.say(output.text("clean_nothing"))
        return
    output.show(
        fit_table(
            [
                Column(output.text("size"), [format_size(left.size_bytes) for left in left_overs], ALWAYS, right=True),
                Column("", [output.text(f"clean_{left.part.value}") for left in left_overs], 5),
                Column(output.text("place"), [str(left.path) for left in left_overs], ALWAYS),
            ],
            output.results.width,
        )
    )


def _agreed(output: Output, total: str) -> bool:
    """Ask the person at the terminal; without one there is nobody to agree."""
    if output.as_json or not sys.stdin.isatty():
        output.say(output.text("clean_needs_yes"), style="yellow")
        return False
    output.notes.print(output.text("clean_sure", size=total), end=" ", markup=False)
    try:
        return input().strip().lower() in ("y", "yes", "是")
    except EOFError:
        return False


def _document(left: LeftOver) -> dict[str, object]:
    return {"part": left.part.value, "path": str(left.path), "size_bytes": left.size_bytes}

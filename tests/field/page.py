"""The field's tables in ``docs/architectures.md``: written by the bench, read again by the test that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.field.cells import BUILT, COLUMNS, YES

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
_BEGIN, _END = "<!-- field -->", "<!-- /field -->"
_NOT_TRIED = "-"


def write_page(found: Mapping[str, Mapping[str, str]]) -> None:
    """Put the outcomes, and below them what could not be built, between the page's marks."""
    built = [[name, *_row(cells)[1:]] for name, cells in sorted(found.items()) if cells.get(BUILT) == YES]
    others = [[name, *_row(cells)[:1]] for name, cells in sorted(found.items()) if cells.get(BUILT) != YES]
    made = f"{_table(COLUMNS[1:], built)}\n\n{_table(['why no model of it is tried'], others)}"
    text = PAGE.read_text("utf-8")
    head, rest = text.split(_BEGIN)
    PAGE.write_text(f"{head}{_BEGIN}\n{made}\n{_END}{rest.split(_END)[1]}", "utf-8")


def recorded() -> dict[str, dict[str, str]]:
    """Architecture -> column -> outcome, of those that were built."""
    lines = PAGE.read_text("utf-8").split(_BEGIN)[1].split(_END)[0].strip().split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def shown(cell: str) -> str:
    """An outcome as it stands in a table."""
    return cell.replace("\n", " ").replace("|", "/")


def _row(cells: Mapping[str, str]) -> list[str]:
    return [shown(cells.get(column, _NOT_TRIED)) for column in COLUMNS]


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = ["architecture", *columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))

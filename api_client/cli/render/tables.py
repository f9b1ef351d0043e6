"""Tables that fit any width: the columns that matter least disappear first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from api_client.words.formatting import one_line

_GAP = 2
ALWAYS = 9


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: Heading.
        cells: One text per row.
        keep: How long it stays when the width shrinks; ``ALWAYS`` never goes.
        right: Whether it is aligned to the right.
    """

    title: str
    cells: Sequence[str | Text]
    keep: int = 5
    right: bool = False

    @property
    def width(self) -> int:
        """Cells that the widest entry takes."""
        return max(cell_len(str(entry)) for entry in (self.title, *self.cells))

    @property
    def empty(self) -> bool:
        """Whether no row says anything."""
        return not any(str(cell).strip() for cell in self.cells)


def fit_table(columns: Sequence[Column], width: int, title: str | None = None) -> Table:
    """A table of the columns that fit, without those that are empty throughout."""
    kept = [column for column in columns if column.keep == ALWAYS or not column.empty]
    while sum(column.width + _GAP for column in kept) - _GAP > width:
        least = min(kept, key=lambda column: column.keep)
        if least.keep == ALWAYS:
            break
        kept.remove(least)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.show_edge = False
    for column in kept:
        side: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=side, overflow="fold", header_style="bold")
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*(cell if isinstance(cell, Text) else Text(one_line(cell)) for cell in row))
    return table

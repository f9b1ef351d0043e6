"""Every architecture through a whole job on its smallest model; writes the table of ``docs/architectures.md``.

``python -m tests.bench field [ARCHITECTURE ...]`` prints a row as soon as it is known; without names it takes them all
(half an hour on two cores) and writes the table between the page's marks.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import transformers

from tests.bench.tables import PAGE, table
from tests.field.architectures import all_architectures
from tests.field.cells import COLUMNS, cells

_NOT_TRIED = "-"


def row(architecture: str) -> list[str]:
    """One row: the name and every column."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = cells(architecture, Path(scratch))
        except Exception as error:  # the table says what happened, whatever it was
            found = {"built": f"{type(error).__name__}: {error}"[:200]}
    return [architecture, *(found.get(column, _NOT_TRIED).replace("\n", " ").replace("|", "/") for column in COLUMNS)]


def main(names: list[str]) -> None:
    """Try the architectures; write the page where all were asked for."""
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for name in names or all_architectures():
        rows.append(row(name))
        print(" | ".join(rows[-1]), flush=True)
    made = table(["architecture", *COLUMNS], rows)
    if names:
        return
    text = PAGE.read_text("utf-8")
    begin, end = "<!-- field -->\n", "\n<!-- /field -->"
    head, rest = text.split(begin)
    PAGE.write_text(f"{head}{begin}{made}{end}{rest.split(end)[1]}", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

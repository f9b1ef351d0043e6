"""The tables of READMEs and reference pages say what the code says."""

from __future__ import annotations

import pytest

from tests.reference_tables import ROOT, TABLES, updated


@pytest.mark.parametrize("file", TABLES)
def test_tables_are_current(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert updated(text, TABLES[file]) == text, "run `make docs`"

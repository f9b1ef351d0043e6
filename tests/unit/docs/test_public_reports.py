"""``docs/public-reports.md`` names tests that are there, and counts what the property tests really run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.convert.consulted_samples import SAMPLES
from tests.unit.convert.test_tokenizer_forms import COMBINATIONS
from tests.unit.convert.test_tokens_in_llama_cpp import CHATS
from tests.unit.convert.tokenizer_families import FAMILIES

_ROOT = Path(__file__).parents[3]
_PAGE = (_ROOT / "docs" / "public-reports.md").read_text("utf-8")
_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in _PAGE.split("<!-- reports -->")[1].split("<!-- /reports -->")[0].strip().splitlines()[2:]
]


def _between(mark: str) -> str:
    return _PAGE.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0]


def _named() -> Iterator[tuple[str, str]]:
    for row in _ROWS:
        found = re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1])
        assert found, f"{row[0]} names no test"
        yield from found


def test_every_case_has_an_outcome_and_a_test_that_is_there() -> None:
    assert len({row[0] for row in _ROWS}) == len(_ROWS)
    assert all(len(row) == 6 and all(row) for row in _ROWS)
    for path, name in _named():
        tree = ast.parse((_ROOT / "tests" / "unit" / path).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_the_combinations_are_counted_as_they_run() -> None:
    families = f"{len(FAMILIES)} families"
    assert f"{families} x {len(COMBINATIONS)} pairs" in _between("tokenizers")
    assert f"= {len(FAMILIES) * len(COMBINATIONS)} combinations" in _between("tokenizers")
    assert f"{len(CHATS)} families with a template x 2 forms = {2 * len(CHATS)} combinations" in _between("chats")
    assert f"{len(SAMPLES)} models" in _between("staged")

"""The page of guarantees: each promise names a test that exists, in a file that runs with the others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "guarantees.md"


def test_each_promise_has_a_test_that_exists() -> None:
    rows = [
        line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ") and not line.startswith("| -")
    ]
    promises = [row for row in rows if row != "| promise | test |"]
    assert len(promises) > 30, "the tables were read"
    for row in promises:
        named = re.fullmatch(r"\| .+\. \| `(tests/[\w/]+/test_\w+\.py)::(test_\w+)` \|", row)
        assert named is not None, row
        tree = ast.parse((ROOT / named[1]).read_text("utf-8"))
        assert named[2] in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], row

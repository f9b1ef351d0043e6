"""What someone may have meant."""

from __future__ import annotations

import ast
from pathlib import Path

import api_client
from api_client.words.suggestions import did_you_mean, nearest

ROOT = Path(api_client.__file__).parent.parent


def test_the_likest_name_is_offered_and_none_that_is_like_nothing() -> None:
    assert nearest("quantise", ["merge", "quantize", "quantizer"]) == "quantize"
    assert nearest("zzz", ["merge", "quantize"]) is None
    assert nearest("mrg", ["merge"], 0.9) is None


def test_the_end_of_a_message() -> None:
    assert did_you_mean(None) == ""
    assert did_you_mean("Q4_K_M") == "; did you mean Q4_K_M?"
    assert did_you_mean("merge", quoted=True) == "; did you mean 'merge'?"


def test_nobody_else_looks_for_likeness() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("api_client", "config", "worker")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(alias.name == "difflib" for alias in node.names)
    }
    assert users == {"api_client/words/suggestions.py"}

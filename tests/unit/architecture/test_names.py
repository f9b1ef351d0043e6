"""One word, one thing: a public class name stands for one class in all of the source."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import api_client
from api_client.contract.job import StageName

ROOT = Path(api_client.__file__).parent.parent
PACKAGES = ("api_client", "config", "worker")


def classes(source: str) -> list[str]:
    """Public classes that a module defines, nested ones too."""
    names = (node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return [name for name in names if not name.startswith("_")]


def test_a_public_class_name_is_used_once() -> None:
    """Rename the less public one, with a word of ``docs/glossary.md`` or of the field."""
    used: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in classes(path.read_text()):
                used[name].append(path.relative_to(ROOT).as_posix())
    assert len(used) > 300, "the source was read"
    assert {name: places for name, places in used.items() if len(places) > 1} == {}


def test_unit_tests_need_no_server() -> None:
    """What both kinds of tests use stands in ``tests`` itself."""
    files = sorted((ROOT / "tests" / "unit").rglob("*.py"))
    imported = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests.integration")
    ]
    assert imported == []
    assert len(files) > 100


def test_a_variable_is_named_after_what_it_holds() -> None:
    vague = {"found", "each", "one"}
    used = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in vague)
        or (isinstance(node, ast.arg) and node.arg in vague)
    ]
    assert used == []


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in given if argument.arg not in ("self", "cls")])


def test_what_always_travels_together_is_one_parameter() -> None:
    """A function of eight parameters wants a bundle of them; a command's flags have ``FlagGroup`` for it."""
    many = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) >= 8
    ]
    assert many == []


def test_the_glossary_has_every_word_once_and_every_stage() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    meanings = {word: meaning for word, meaning in rows if word not in ("word", "---")}
    assert [word for word, count in Counter(word for word, _ in rows).items() if count > 1 and word in meanings] == []
    assert re.findall(r"`(\w+)`", meanings["stage"]) == [stage.value for stage in StageName]

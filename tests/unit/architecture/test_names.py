"""One word, one thing: a public class name stands for one class in all of the source."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import api_client

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

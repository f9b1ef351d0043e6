"""The command line and the console are two faces of one client: what both say stands in ``api_client/words``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import api_client

CLIENT = Path(api_client.__file__).parent
STARTS_THE_CONSOLE = "commands/console.py"
"""The one command that loads the console: it runs it."""


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, deferred imports too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def crossings(face: str, other: str) -> set[str]:
    """Files of one face that import from the other."""
    return {
        path.relative_to(CLIENT / face).as_posix()
        for path in (CLIENT / face).rglob("*.py")
        if any(f"{name}.".startswith(f"api_client.{other}.") for name in imported(path))
    }


def test_neither_face_imports_the_other() -> None:
    assert crossings("console", "cli") == set()
    assert crossings("cli", "console") == {STARTS_THE_CONSOLE}


def test_what_both_use_is_below_both() -> None:
    for face in ("cli", "console"):
        assert crossings("words", face) == set()
        assert not any(f"{name}.".startswith(f"api_client.{face}.") for name in imported(CLIENT / "connection.py"))

"""Storage moves bytes: it knows neither models nor stages, and stands on no command line."""

from __future__ import annotations

import ast
from pathlib import Path

STORAGE = Path(__file__).parents[3] / "worker" / "storage"
BELOW = ("api_client", "config", "worker.stop", "worker.storage")
ABOVE = ("api_client.cli", "api_client.console")


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_storage_stands_on_the_contract_and_the_settings_alone() -> None:
    wrong = []
    for path in STORAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            ours = within(module, ("api_client", "config", "worker", "tests"))
            if ours and (not within(module, BELOW) or within(module, ABOVE)):
                wrong.append(f"{path.name}: {module}")
    assert wrong == []

"""What the tests of ``deploy/`` share: where things lie, YAML documents, and names that the settings know."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_client.console.settings import PREFIX as CONSOLE_PREFIX
from api_client.console.settings import ConsoleSettings
from config.settings import PREFIX, Settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
DATA = Path(__file__).parent / "data"

SETTING_NAMES = {PREFIX + name.upper() for name in Settings.model_fields}
CONSOLE_NAMES = {CONSOLE_PREFIX + name.upper() for name in ConsoleSettings.model_fields}
DRAIN_S = Settings.model_fields["drain_s"].default
STOP_MARGIN_S = 20
"""What a worker needs beyond the drain: ending the stage's processes, handing back, closing connections."""


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / name).read_text())
    return found


def program(name: str) -> str:
    """A validator that this machine may have; where not, the test that needs it is skipped and others still look."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here")
    return found


def strings(node: Any) -> Iterator[str]:
    """Every string in a document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)

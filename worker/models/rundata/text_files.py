"""Small text files that trainers leave, read as what they should be. What cannot be read says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 1 << 20


def small_text(path: Path) -> str | None:
    """The text of a file of at most a mebibyte; None where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def yaml_values(text: str) -> dict[str, Any]:
    """The top level of a YAML mapping."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def json_values(text: str) -> dict[str, Any]:
    """The top level of a JSON object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}

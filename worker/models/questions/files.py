"""A file of questions: JSON Lines, a JSON list, or a prompt a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.request import EvaluationOptions, request_error

_MAX_BYTES = 1 << 20


def read_questions(path: Path) -> dict[str, str]:
    """Prompts with what their answers have to hold.

    Raises:
        PackagingError: ``request_invalid`` naming the file and the fact: unreadable, empty, of another form, too many.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _invalid(path, f"it is larger than {_MAX_BYTES >> 10} KiB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _invalid(path, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _invalid(path, f"it is not UTF-8 at byte {error.start}") from error
    listed = _listed(path, text)
    if not listed:
        raise _invalid(path, "it holds no question")
    try:
        return EvaluationOptions.model_validate({"questions": listed}).questions
    except ValidationError as error:
        raise _invalid(path, request_error(error).message) from error


def _listed(path: Path, text: str) -> list[Any]:
    try:
        data = json.loads(text)
        return data if isinstance(data, list) else [data]
    except (ValueError, RecursionError):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
        return list(lines)
    try:
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"it is no JSON: {error}") from error


def _invalid(path: Path, fact: str) -> PackagingError:
    return PackagingError(
        ErrorCode.REQUEST_INVALID,
        f"questions {path.name}: {fact}",
        fields={"field": "evaluation.questions_file", "path": str(path)},
    )

"""Bounds in bytes of every text that enters Redis or a log. What is longer is cut, with a mark that says by how much.

Texts come from files (a tensor's name may have twenty million letters), from libraries and from producers, and each is
kept several times: with the stage, the job, the attempt and in the log.
"""

from __future__ import annotations

import json
from typing import Any

MESSAGE_BYTES = 4096
"""A failure's message or remedy, a line of the log."""
FIELDS_BYTES = 16_384
"""Fields of a failure or a line of the log, as JSON."""
DETAIL_BYTES = 512
"""What progress says beside its numbers."""
FACTS_BYTES = 262_144
"""Facts of one stage, or of one of its files, as JSON."""
REQUEST_BYTES = 262_144
"""A whole request, as JSON: a longer one is refused."""

_TEXT_BYTES = 4096
_NESTING = 16
_SHORT_CHARACTERS = 256


def cut(text: str, max_bytes: int) -> str:
    """A text of at most ``max_bytes`` in UTF-8; a longer one is cut and ends in a mark."""
    if 4 * len(text) <= max_bytes:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    mark = f" [{len(data) - max_bytes} bytes or more cut]"
    kept = data[: max(0, max_bytes - len(mark))].decode("utf-8", "ignore")
    return kept + mark


def cut_fields(fields: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """JSON values of at most about ``max_bytes``; of more, long texts are cut and what comes last goes."""
    text = json.dumps(fields, default=str, ensure_ascii=False)
    if len(text) <= max_bytes and len(text.encode("utf-8", "replace")) <= max_bytes:
        return fields
    cut: dict[str, Any] = _Cutter(max_bytes).value(fields, 0)
    return cut


class _Cutter:
    """Copies a JSON value until its bytes are used up."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def value(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return self._items(value, depth)
        if isinstance(value, list | tuple):
            return self._list(value, depth)
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool | int | float):
            self._left -= 8
            return value
        return self._text(str(value))

    def _items(self, items: dict[Any, Any], depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for number, (key, value) in enumerate(items.items()):
            if self._left <= 0 or depth > _NESTING:
                return kept | {"cut": f"{len(items) - number} more"}
            name = cut(str(key), _SHORT_CHARACTERS)
            self._left -= len(name)
            kept[name] = self.value(value, depth + 1)
        return kept

    def _list(self, values: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        kept: list[Any] = []
        for number, value in enumerate(values):
            if self._left <= 0 or depth > _NESTING:
                return [*kept, f"[{len(values) - number} more]"]
            kept.append(self.value(value, depth + 1))
        return kept

    def _text(self, text: str) -> str:
        kept = cut(text, max(64, min(_TEXT_BYTES, self._left)))
        self._left -= len(kept.encode("utf-8", "replace"))
        return kept

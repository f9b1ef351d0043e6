"""Values of request fields as text and back, as forms and command lines write them, and their places in a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from api_client.contract.field_types import FieldKind

_UNITS: Final = {"K": 10**3, "M": 10**6, "G": 10**9}
_DECODER: Final = json.JSONDecoder()


def exact(text: str) -> str:
    """A text as a person would type it; in JSON's quotes where a form would change it or take it for something else."""
    return text if _is_plain(text) else json.dumps(text, ensure_ascii=not text.isprintable())


def typed(text: str) -> str:
    """Inverse of :func:`exact`; what is not wholly in quotes is itself."""
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def text_of(kind: FieldKind, value: Any) -> str:
    """What a form shows of a value; empty for ``None``, a switch that is off, and no pairs."""
    if value is None:
        return ""
    if kind is FieldKind.SWITCH:
        return "on" if value else ""
    if kind is FieldKind.PAIRS:
        return "\n".join(pair_text(key, text) for key, text in value.items())
    if kind is FieldKind.LINES:
        return "\n".join(value)
    if kind in (FieldKind.TEXT, FieldKind.PATH):
        return exact(str(value))
    return str(value)


def value_of(kind: FieldKind, text: str) -> Any:
    """Inverse of :func:`text_of`, as far as the request does not read the text by itself.

    Raises:
        ValueError: a line that is no pair, a size that is none.
    """
    if kind is FieldKind.SWITCH:
        return bool(text)
    if kind is FieldKind.PAIRS:
        return dict(read_pair(line) for line in text.splitlines() if line.strip())
    if kind is FieldKind.LINES:
        return tuple(text.split())
    if not text:
        return None
    if kind is FieldKind.SIZE:
        return read_size(text)
    return typed(text) if kind in (FieldKind.TEXT, FieldKind.PATH) else text


def pair_text(key: str, text: str) -> str:
    """``key=value``; both in JSON's quotes where blanks or quotes would be lost."""
    plain = _is_plain(key) and "=" not in key and text == text.strip() and text.isprintable()
    return f"{key}={text}" if plain else f"{json.dumps(key)}={json.dumps(text)}"


def read_pair(text: str) -> tuple[str, str]:
    """Both sides of ``key=value``, without the blanks around them.

    Raises:
        ValueError: it has no ``=`` or no key; the text itself is the message.
    """
    try:
        key, end = _DECODER.raw_decode(text) if text.startswith('"') else ("", 0)
        if end and text[end : end + 1] == "=":
            return str(key), typed(text[end + 1 :])
    except ValueError:  # no JSON: the quote is part of the key
        pass
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ValueError(text)
    return key.strip(), value.strip()


def read_size(text: str) -> int:
    """Bytes of ``500000000``, ``500M`` or ``2G``; decimal, as llama-gguf-split counts.

    Raises:
        ValueError: anything else.
    """
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in _UNITS else (text, "")
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(f"{text} is no size; write a whole number of bytes, or e.g. 500M or 2G")
    return int(number) * _UNITS.get(unit, 1)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """A request's data from values by path: ``{"imatrix.chunks": 7}`` is ``{"imatrix": {"chunks": 7}}``."""
    data: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return data


def value_at(request: Any, path: str) -> Any:
    """The value of a request at a path; ``None`` where a part on the way is not there."""
    for name in path.split("."):
        request = None if request is None else getattr(request, name)
    return request


def _is_plain(text: str) -> bool:
    return bool(text) and text == text.strip() and text.isprintable() and not text.startswith('"')

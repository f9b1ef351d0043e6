"""What a job's page says of the request and its inputs: every setting, and every input with its digest. Pure.

Facts of a stage are read back from Redis: what is of another form is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from api_client.contract.field_types import FieldKind
from api_client.contract.field_values import text_of, value_at
from api_client.contract.job import Job, StageName
from api_client.contract.request import PackagingRequest
from api_client.contract.request_fields import FIELDS
from api_client.words.language import Language

_MOST = 500
_START = PackagingRequest()


@dataclass(frozen=True)
class SettingLine:
    """One field of the request: its path, what it is, its value as text, and whether it differs from the default."""

    path: str
    about: str
    value: str
    given: bool


@dataclass(frozen=True)
class InputLine:
    """One input: what it is to the job (``base_model``, ``adapter``, ``tokenizer``), its name, digest and size."""

    role: str
    name: str
    digest: str
    size_bytes: int | None


def settings_of(job: Job, language: Language) -> list[SettingLine]:
    """Every field of the request that says something, in the order of the table of fields."""
    return [*_settings(job.request, language)]


def _settings(request: PackagingRequest, language: Language) -> Iterator[SettingLine]:
    for row in FIELDS:
        if row.kind is FieldKind.PARTS:
            continue
        try:
            value, start = value_at(request, row.path), value_at(_START, row.path)
            text = text_of(row.kind, value)
        except (AttributeError, TypeError):  # a request of another version, shown unchecked
            continue
        if text or value != start:
            yield SettingLine(row.path, language.choose(*row.about), text, value != start)


def inputs_of(job: Job) -> list[InputLine]:
    """The inputs that ``prepare`` found, with the digests that the manifest has."""
    return [*_inputs(_mapping(job.facts_of(StageName.PREPARE).get("inputs")))][:_MOST]


def _inputs(inputs: Mapping[str, Any]) -> Iterator[InputLine]:
    for role, value in inputs.items():
        given = _mapping(value)
        if "name" in given or "header_fingerprint" in given:
            yield InputLine(str(role), str(given.get("name", "")), str(given.get("header_fingerprint", "")), None)
        for name, file in _mapping(given.get("files")).items():
            size = _mapping(file).get("size_bytes")
            digest = str(_mapping(file).get("sha256", ""))
            yield InputLine(str(role), str(name), digest, size if isinstance(size, int) else None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

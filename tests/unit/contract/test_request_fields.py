"""The table of request fields against the request itself: nothing is missing, nothing is told twice."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from api_client import PackagingRequest
from api_client.contract.field_types import FieldKind
from api_client.contract.field_values import exact, nested, pair_text, read_pair, read_size, text_of, typed, value_of
from api_client.contract.request_fields import CONTROL_OF_CODE, FIELD_OF, FIELDS, control_of


def annotated(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every field and part of a field, by path, with its annotation."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = field.annotation
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= annotated(part, f"{prefix}{name}.")
    return found


MODEL = annotated(PackagingRequest)


def test_the_table_has_every_field_and_no_other() -> None:
    assert sorted(FIELD_OF) == sorted(MODEL)
    assert len(FIELD_OF) == len(FIELDS), "a path stands twice"


def test_choices_are_those_of_the_request() -> None:
    for row in FIELDS:
        kind = MODEL[row.path]
        values = [*kind] if isinstance(kind, type) and issubclass(kind, Enum) else get_args(kind)
        assert sorted(row.choices) == (sorted(map(str, values)) if row.kind is FieldKind.CHOICE else []), row.path


def test_names_stand_once() -> None:
    flags = [name for row in FIELDS if row.flag for name in row.flag.names]
    controls = [row.control.name for row in FIELDS if row.control and row.control.name != "switches"]
    codes = [code for row in FIELDS for code in row.codes]
    for names in (flags, controls, codes):
        assert [name for name, times in Counter(names).items() if times > 1] == []


def test_every_text_is_in_both_languages() -> None:
    for row in FIELDS:
        said: list[Any] = [
            row.about,
            row.flag and row.flag.about,
            row.control and row.control.label,
            *row.choices.values(),
        ]
        said += [row.control and row.control.hint]
        for text in filter(None, said):
            assert text.en, row.path
            assert text.zh, row.path


def test_the_schema_says_what_every_field_is() -> None:
    schema = PackagingRequest.model_json_schema()
    models = {"": schema, **{f"{name}.": schema["$defs"][model] for name, model in PARTS.items()}}
    told = {
        f"{at}{name}": field["description"] for at, part in models.items() for name, field in part["properties"].items()
    }
    assert told == {row.path: row.about.en for row in FIELDS}


PARTS = {
    "task": "TrainingTask",
    "options": "Options",
    "imatrix": "ImatrixOptions",
    "evaluation": "EvaluationOptions",
    "fit": "FitOptions",
    "recipe": "RecipeOptions",
}


@pytest.mark.parametrize(
    ("path", "control"),
    [
        ("quant_types.0", "quant_types"),
        ("imatrix", "imatrix"),
        ("imatrix.chunks", "imatrix_chunks"),
        ("options.export_lora", "switches"),
        ("options", "switches"),
        ("task.output_dir", "run"),
        ("labels.run", "labels"),
        ("idempotency_key", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_a_field_leads_to_its_control(path: str, control: str | None) -> None:
    assert control_of(path) == control


def test_codes_point_at_controls_of_the_page() -> None:
    assert {code.value: name for code, name in CONTROL_OF_CODE.items() if "switch" in name} == {
        "template_locked": "switches",
        "quantize_needs_export": "switches",
        "merge_excludes_lora_export": "switches",
        "nothing_to_do": "switches",
    }
    assert set(CONTROL_OF_CODE.values()) <= {row.control.name for row in FIELDS if row.control}


@pytest.mark.parametrize("text", ["", " a", "a ", '"', '"a"', "a\nb", "\u2028", "\x00", "ü 模", "a=b", "\\"])
def test_a_text_is_kept_as_it_is(text: str) -> None:
    assert typed(exact(text)) == text
    assert exact(text) == exact(text).strip()
    assert exact(text).isprintable()
    assert read_pair(pair_text(text or "k", text)) == (text or "k", text)
    assert value_of(FieldKind.PAIRS, text_of(FieldKind.PAIRS, {text or "k": text})) == {text or "k": text}


def test_what_a_person_types_is_taken_as_it_reads() -> None:
    assert typed('"half') == '"half'
    assert typed('"1", "2"') == '"1", "2"'
    assert read_pair(" team = search ") == ("team", "search")
    assert read_pair('"q=1') == ('"q', "1")
    for wrong in ("team", "=x", " ", '"team"'):
        with pytest.raises(ValueError, match=wrong.strip() or " "):
            read_pair(wrong)


def test_sizes() -> None:
    assert [read_size(text) for text in ("2000000", "500M", "2g", "7K")] == [
        2_000_000,
        500_000_000,
        2_000_000_000,
        7000,
    ]
    for wrong in ("", "M", "-5", "1.5G", "1e9", "２", "five"):
        with pytest.raises(ValueError, match="is no size"):
            read_size(wrong)


def test_values_find_their_places() -> None:
    assert nested({"a": 1, "b.c": 2, "b.d": 3}) == {"a": 1, "b": {"c": 2, "d": 3}}

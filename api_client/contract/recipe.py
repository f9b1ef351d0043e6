"""Recipes: types that a request gives tensors by itself, with the options of llama-quantize and in its syntax.

The one owner of that syntax: ``NAME=TYPE``, where NAME is a regular expression that is searched for in tensors' names
and of several lines the first that matches counts, as llama-quantize b11434 has it (``tools/quantize/quantize.cpp``).
What the lines come to for a model is decided in ``worker/models/mixture/recipe.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, StrictBool, field_validator

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.request_fields import describe
from api_client.contract.tensor_types import TENSOR_TYPES, tensor_type

MAX_LINES: Final = 20_000
MAX_PATTERN: Final = 256

# what Python reads and C++'s regular expressions do not, or read otherwise
_FOREIGN: Final = re.compile(r"\(\?(?![:=!])|\\[AZzpPNuUkK]|[*+?}]\+|\[\[[:.=]")


class TensorRule(NamedTuple):
    """One line of a recipe."""

    pattern: str
    """In lower case, as llama-quantize makes it."""
    type: str

    @property
    def text(self) -> str:
        """As it stands in a file."""
        return f"{self.pattern}={self.type.lower()}"


class RecipeOptions(BaseModel, frozen=True):
    """llama-quantize's options on tensors' types. A fit keeps to them, too; ``pure`` says nothing to it.

    Raises:
        PackagingError: ``recipe_invalid``, ``tensor_type_unknown``.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=describe("recipe."))

    pure: StrictBool = False
    leave_output_tensor: StrictBool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    tensor_types: tuple[str, ...] = ()

    @field_validator("tensor_types", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else () if value is None else value

    @field_validator("tensor_types")
    @classmethod
    def _lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > MAX_LINES:
            raise PackagingError(ErrorCode.RECIPE_INVALID, f"the recipe has {len(value)} lines, at most {MAX_LINES}")
        return tuple(tensor_rule(line).text for line in value)

    @field_validator("output_tensor_type", "token_embedding_type")
    @classmethod
    def _known_type(cls, value: str | None) -> str | None:
        return None if value is None else tensor_type(value)

    @property
    def rules(self) -> tuple[TensorRule, ...]:
        """The lines, read."""
        return tuple(map(tensor_rule, self.tensor_types))

    @property
    def needs_imatrix(self) -> bool:
        """Whether a line asks for a type that is not made without an importance matrix."""
        return any(TENSOR_TYPES[rule.type].needs_imatrix for rule in self.rules)


def tensor_rule(line: str) -> TensorRule:
    """Read one ``NAME=TYPE``.

    Raises:
        PackagingError: ``recipe_invalid``, ``tensor_type_unknown``.
    """
    pattern, sign, name = line.strip().partition("=")
    if not sign or not pattern or not name:
        raise _invalid(line, "is not of the form NAME=TYPE")
    if len(pattern) > MAX_PATTERN or len(pattern.split()) != 1:
        raise _invalid(line, f"has a blank in its name, or more than {MAX_PATTERN} characters")
    lowered = pattern.translate(_ASCII_LOWER)
    try:
        re.compile(lowered, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise _invalid(line, f"has a name that is no regular expression: {error}") from error
    if _FOREIGN.search(lowered):
        raise _invalid(line, "has a name with a construct that llama-quantize does not know")
    return TensorRule(lowered, tensor_type(name))


def recipe_lines(text: str) -> tuple[str, ...]:
    """Lines of a recipe file; blanks and line ends part them, as for ``--tensor-type-file``.

    Raises:
        PackagingError: ``recipe_invalid``, ``tensor_type_unknown``.
    """
    return tuple(tensor_rule(line).text for line in text.split())


def recipe_text(types: Iterable[tuple[str, str]]) -> str:
    """A recipe file that gives each tensor, by its whole name, one type.

    Args:
        types: Name and ggml type of each tensor.
    """
    return "".join(f"{TensorRule(exact_pattern(name), kind).text}\n" for name, kind in types)


def exact_pattern(name: str) -> str:
    """The pattern that matches one tensor's name and no other."""
    return "^" + _SPECIAL.sub(r"\\\g<0>", name) + "$"


def exact_name(pattern: str) -> str | None:
    """Inverse of :func:`exact_pattern`; ``None`` for any other pattern."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return None
    name = re.sub(r"\\([^a-z0-9])", r"\1", pattern[1:-1])
    return name if exact_pattern(name) == pattern else None


def _invalid(line: str, reason: str) -> PackagingError:
    shown = line[:80]
    return PackagingError(
        ErrorCode.RECIPE_INVALID,
        f"recipe: {shown!r} {reason}",
        fields={"field": "recipe.tensor_types", "line": shown},
    )


_SPECIAL: Final = re.compile(r"[.^$|()\[\]{}*+?\\]")
_ASCII_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}

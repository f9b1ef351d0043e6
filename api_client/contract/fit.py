"""Fits: quant types given by a bound and not by a name. The one owner of how a bound is written and read.

* ``fit:5.5GiB``, ``fit:500MB``, ``fit:145400000``: the file has at most so many bytes;
* ``fit:4.5bpw``: the tensors have at most so many bits an element;
* ``fit:like:Q4_K_M``: at most the bytes of that type's file of the same model;
* ``fit:target:gpu-8g``, ``fit:target:6GB``: file, KV cache and buffers go into that place's memory;
* ``fit:kld:0.02``: the smallest file with that mean KLD.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, field_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import (
    CoreSchema,
    no_info_after_validator_function,
    plain_serializer_function_ser_schema,
    str_schema,
)

from api_client.contract.byte_sizes import memory_bytes, size_in_its_one_form
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.locations import Location
from api_client.contract.quant_types import ALIASES, QuantType
from api_client.contract.recommend import DEFAULT_CONTEXT, TARGETS
from api_client.contract.request_fields import describe
from api_client.contract.tensor_types import type_set
from api_client.words.suggestions import did_you_mean, nearest

PREFIX: Final = "fit:"
_BITS = re.compile(r"(\d{1,2}(?:\.\d{1,3})?)\s*bpw", re.ASCII)
_BYTES = re.compile(r"\d{1,15}b?", re.ASCII)
_KLD = re.compile(r"\d{0,2}(?:\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FitBound:
    """What a fit must keep to: exactly one of these is set.

    Attributes:
        size_bytes: Bytes of the whole file.
        bits_per_weight: Bits of tensor data an element.
        like: The file of this type is the measure.
        target: Name or memory of a place to run, as ``recommend`` knows it.
        kld: Mean KLD in nats; the smallest file is sought.
    """

    size_bytes: int | None = None
    bits_per_weight: float | None = None
    like: QuantType | None = None
    target: str | None = None
    kld: float | None = None


class FitType(str):
    """A fit, as text in its one form; equal ones are equal texts. Stands wherever a quant type's name does."""

    __slots__ = ()

    def __new__(cls, text: str) -> FitType:
        """Read a fit.

        Raises:
            PackagingError: ``fit_invalid``, ``quant_type_unknown`` after ``like``.
        """
        return super().__new__(cls, f"{PREFIX}{_canonical(text)}")

    @property
    def value(self) -> str:
        """The text, as an enum's member has it."""
        return str(self)

    @property
    def bound(self) -> FitBound:
        """What it asks for."""
        word, _, rest = self.removeprefix(PREFIX).rpartition(":")
        if word == "like":
            return FitBound(like=QuantType(rest))
        if word == "target":
            return FitBound(target=rest)
        if word == "kld":
            return FitBound(kld=float(rest))
        if rest.endswith("bpw"):
            return FitBound(bits_per_weight=float(rest.removesuffix("bpw")))
        size = memory_bytes(rest)
        return FitBound(size_bytes=size if size is not None else int(rest.removesuffix("B")))

    @property
    def label(self) -> str:
        """What stands in a file's name in a quant type's place: ``FIT-5.5GiB``, ``FIT-4.50bpw``, ``FIT-Q4_K_M``."""
        word, _, rest = self.removeprefix(PREFIX).rpartition(":")
        if rest.endswith("bpw"):
            digits = len(rest.removesuffix("bpw").partition(".")[2])
            rest = f"{Decimal(rest.removesuffix('bpw')):.{max(2, digits)}f}bpw"
        if word == "target" and rest not in TARGETS:  # a size, as that of a file may be
            return f"FIT-target-{rest}"
        return f"FIT-{word}{rest}" if word == "kld" else f"FIT-{rest}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A string in JSON, of one form in both directions: generators of clients take two schemas for a mistake."""
        text = str_schema(pattern=f"^{PREFIX}")
        written = plain_serializer_function_ser_schema(str, return_schema=text, when_used="json-unless-none")
        return no_info_after_validator_function(cls, text, serialization=written)


def _canonical(text: str) -> str:
    """The bound in its one form, without the prefix."""
    given = text.strip()
    given = given[len(PREFIX) :] if given.lower().startswith(PREFIX) else given
    word, _, rest = (part.strip() for part in given.partition(":"))
    word = word.lower()
    if word == "like":
        return f"like:{_type_named(rest, text).value}"
    if word == "target":
        return f"target:{_target_named(rest, text)}"
    if word == "kld":
        if not _KLD.fullmatch(rest) or not rest.strip("0."):
            raise _invalid(text, "after kld: stands no number of nats above 0, e.g. 0.02")
        return f"kld:{_plain(rest)}"
    return _size(given.strip(), text)


def _type_named(rest: str, text: str) -> QuantType:
    try:
        return _named(rest)
    except ValueError:
        raise _invalid(text, f"there is no quant type {rest!r}", nearest(rest.upper(), list(QuantType), 0.4)) from None


def _target_named(rest: str, text: str) -> str:
    if rest.lower() in TARGETS:
        return rest.lower()
    size = size_in_its_one_form(rest)
    if size is None:
        raise _invalid(text, f"there is no target {rest!r}", nearest(rest.lower(), TARGETS, 0.4))
    return size


def _size(rest: str, text: str) -> str:
    if bits := _BITS.fullmatch(rest.lower()):
        if not 0 < Decimal(bits[1]) <= 32:
            raise _invalid(text, "bits per weight are above 0 and at most 32")
        return f"{_plain(bits[1])}bpw"
    if _BYTES.fullmatch(rest.lower()) and int(rest.lower().removesuffix("b")):
        return f"{int(rest.lower().removesuffix('b'))}B"
    size = size_in_its_one_form(rest)
    if size is None:
        words = [f"fit:{name}" for name in ("like:Q4_K_M", "target:gpu-8g", "kld:0.02")]
        raise _invalid(text, f"{rest!r} is no size", nearest(text, words, 0.6))
    return size


def _plain(number: str) -> str:
    """A number without zeros that say nothing."""
    return f"{Decimal(number).normalize():f}"


def _invalid(text: str, reason: str, suggestion: str | None = None) -> PackagingError:
    return PackagingError(
        ErrorCode.FIT_INVALID,
        f"{text.strip()!r}: {reason}" + did_you_mean(suggestion),
        fields={"quant_type": text.strip()[:200], "suggestion": suggestion},
    )


AnyQuantType = QuantType | FitType
"""What a file is quantized to: a type of llama.cpp's, or a fit."""


def quant_type_of(text: str) -> AnyQuantType:
    """A quant type or a fit by its text, in upper or lower case.

    Raises:
        PackagingError: ``quant_type_unknown`` with the nearest name, ``fit_invalid``.
    """
    if text.strip().lower().startswith(PREFIX):
        return FitType(text)
    try:
        return _named(text)
    except ValueError:
        suggestion = nearest(text.strip().upper(), [quant_type.value for quant_type in QuantType], 0.4)
        raise PackagingError(
            ErrorCode.QUANT_TYPE_UNKNOWN,
            f"unknown quant type {text!r}" + did_you_mean(suggestion),
            fields={"quant_type": text, "suggestion": suggestion},
        ) from None


def _named(text: str) -> QuantType:
    name = text.strip().upper()
    return ALIASES.get(name) or QuantType(name)


def _read(value: Any) -> Any:
    """For pydantic, which takes no :class:`PackagingError`; who wants ours asks :func:`quant_type_of` again."""
    if not isinstance(value, str) or isinstance(value, QuantType | FitType):
        return value
    try:
        return quant_type_of(value)
    except PackagingError as error:
        raise PydanticCustomError("quant_type", "{reason}", {"reason": error.message}) from error


QuantTypeField = Annotated[AnyQuantType, BeforeValidator(_read)]
"""A quant type as a field of a record: read from text in either case."""


class FitOptions(BaseModel, frozen=True):
    """What all fits of a request have in common. Types that tensors are kept at are the recipe's.

    Raises:
        PackagingError: ``tensor_type_unknown``.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=describe("fit."))

    types: str = "k"
    context: int = Field(default=DEFAULT_CONTEXT, ge=1, le=100_000_000)
    sensitivity: Location | None = None

    @field_validator("types")
    @classmethod
    def _known_types(cls, value: str) -> str:
        type_set(value)
        return value.strip()

    @property
    def allowed(self) -> tuple[str, ...]:
        """The ggml types that a fit may choose from."""
        return type_set(self.types)


def fits_of(types: tuple[AnyQuantType, ...]) -> tuple[FitType, ...]:
    """The fits among quant types."""
    return tuple(quant_type for quant_type in types if isinstance(quant_type, FitType))

"""Members of string enums that carry a row of further values."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

_Member = TypeVar("_Member", bound=StrEnum)


def named_member(enum: type[_Member], name: str) -> _Member:
    """A member that is ``name``, for a ``__new__`` whose row has more than the name.

    ``_value_`` is what Python's documentation of ``enum`` has such a ``__new__`` set.
    """
    member = str.__new__(enum, name)
    member._value_ = name
    return member

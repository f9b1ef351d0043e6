"""Errors: one exception type, one record of what went wrong, one way to explain it.

``error_codes`` is the table of codes. What is raised (``PackagingError``) carries a ``Failure``; that is what is stored
with jobs, sent to whoever asked, and explained to people by ``Failure.told``, wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from api_client.contract.byte_bounds import FIELDS_BYTES, MESSAGE_BYTES, cut, cut_fields
from api_client.contract.error_codes import ErrorClass, ErrorCode
from api_client.words.language import Language

__all__ = ["ErrorClass", "ErrorCode", "Failure", "PackagingError", "Told", "failure_of"]


@dataclass(frozen=True)
class Told:
    """A failure, explained in one language."""

    error: Failure
    language: Language
    cause: str
    """Why such an error comes."""
    remedy: str
    """What to do; one written for the very case is in English."""

    def document(self) -> dict[str, Any]:
        """For programs: code, message, remedy, fields. JSON values only."""
        error = self.error
        return {
            "code": error.code.value,
            "message": error.message,
            "remedy": self.remedy,
            "fields": dict(error.fields),
        }

    def record(self) -> dict[str, Any]:
        """The document with what else is stored: class and stage."""
        error = self.error
        stage = {} if error.stage is None else {"stage": error.stage}
        return self.document() | {"class": error.error_class.value} | stage


@dataclass(frozen=True)
class Failure:
    """What went wrong, where, and what to do."""

    code: ErrorCode
    """One of the table, or a foreign one of another version, which keeps its text and its class."""
    message: str
    """The fact, naming the file or value (``needed 31.2 GB, free 12.0 GB``); English."""
    remedy: str | None = None
    """One written for the very case; ``None``: the code's."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Facts for machines; JSON values only."""
    stage: str | None = None
    """Stage that failed, of a job's failure."""

    def __post_init__(self) -> None:
        """Keep it short: its texts may come from a file, and it is stored several times."""
        object.__setattr__(self, "message", cut(self.message, MESSAGE_BYTES))
        object.__setattr__(self, "fields", cut_fields(self.fields, FIELDS_BYTES))
        if self.remedy is not None:
            object.__setattr__(self, "remedy", cut(self.remedy, MESSAGE_BYTES))

    @property
    def error_class(self) -> ErrorClass:
        """What happens next."""
        return self.code.error_class

    def told(self, language: Language) -> Told:
        """Explain it: the one place where an error becomes text for a reader."""
        row = self.code.row
        remedy = self.remedy or language.choose(row.remedy_en, row.remedy_zh)
        return Told(self, language, language.choose(row.cause_en, row.cause_zh), remedy)

    def at(self, stage: str) -> Failure:
        """The same, of a job's stage. Versions before this one look for the stage among the fields."""
        return replace(self, stage=stage, fields={"stage": stage} | self.fields)

    def to_record(self) -> dict[str, Any]:
        """As it is stored and sent. The remedy is written out: a reader may not know the code."""
        return self.told(Language.EN).record()

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_record`, ``Told.document`` or a version before them has written; never raises.

        A known code has the class that this version gives it. An unknown one keeps its text, its remedy and the class
        that was stored with it; where none was, it is taken for a bug.
        """
        text = str(data.get("code"))
        try:
            code = ErrorCode(text)
        except ValueError:
            code = ErrorCode.foreign(text, _stored_class(data.get("class")))
        remedy, fields, stage = data.get("remedy"), data.get("fields"), data.get("stage")
        fields = dict(fields) if isinstance(fields, Mapping) else {}
        stage = stage or fields.get("stage")
        own = isinstance(remedy, str) and remedy != code.row.remedy_en
        return cls(
            code,
            str(data.get("message", "")),
            remedy if own else None,
            fields,
            stage if isinstance(stage, str) else None,
        )

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"


class PackagingError(Exception):
    """The one error that users, producers and operators see.

    Args:
        code: Stable code; decides the class and thereby whether the attempt is retried.
        message: The fact, naming the file or value (``needed 31.2 GB, free 12.0 GB``).
        remedy: What to do about it; the code's own where not given.
        fields: Facts for machines; JSON values only.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        remedy: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        # A foreign code stands in no list, so it cannot be looked up.
        known = code if isinstance(code, ErrorCode) else ErrorCode(code)
        self.failure = Failure(known, message, remedy, dict(fields or {}))
        super().__init__(self.failure.message)

    @classmethod
    def of(cls, failure: Failure) -> Self:
        """The exception for a failure."""
        error = cls(failure.code, failure.message)
        error.failure = failure
        return error

    @property
    def code(self) -> ErrorCode:
        """Stable code."""
        return self.failure.code

    @property
    def message(self) -> str:
        """The fact."""
        return self.failure.message

    @property
    def fields(self) -> dict[str, Any]:
        """Facts for machines."""
        return self.failure.fields

    @property
    def remedy(self) -> str:
        """What to do, in English."""
        return self.failure.told(Language.EN).remedy

    @property
    def error_class(self) -> ErrorClass:
        """Class of the code: what happens next."""
        return self.failure.error_class

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed with nothing changed."""
        return self.error_class is ErrorClass.TRANSIENT

    def told(self, language: Language) -> Told:
        """Its failure, explained."""
        return self.failure.told(language)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as printed with ``--json``."""
        return self.failure.told(Language.EN).document()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`, and of how failures are stored; a code that this version lacks keeps its text."""
        return cls.of(Failure.from_record(data))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.failure.to_record(),))

    def __str__(self) -> str:
        return str(self.failure)


def failure_of(stored: Mapping[str, Any] | None) -> Failure | None:
    """The failure that a record holds, if it holds one."""
    return Failure.from_record(stored) if stored else None


def _stored_class(text: object) -> ErrorClass:
    return next((known for known in ErrorClass if known == text), ErrorClass.BUG)


def _rebuild(data: dict[str, Any]) -> PackagingError:
    return PackagingError.from_dict(data)

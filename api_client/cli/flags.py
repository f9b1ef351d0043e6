"""The flags of ``submit`` and ``package``: one for every row of the table of request fields that has one."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self, get_type_hints

import typer

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.field_types import FieldKind, Flag, RequestField, Twin
from api_client.contract.field_values import value_at
from api_client.contract.locations import CHECKPOINT_WORDS
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.request import PackagingRequest
from api_client.contract.request_fields import FIELDS
from api_client.contract.templates import BUILTIN_TEMPLATES

_REPEATED: Final = (FieldKind.LIST, FieldKind.PAIRS, FieldKind.LINES)
_DEFAULTS: Final = PackagingRequest()


def complete_template(incomplete: str) -> Iterator[tuple[str, str]]:
    """Template names for the shell."""
    for template in BUILTIN_TEMPLATES.values():
        if template.name.startswith(incomplete):
            yield template.name, template.title_en


def complete_quant_type(incomplete: str) -> Iterator[tuple[str, str]]:
    """Quant type names for the shell."""
    for quant_type in QuantType:
        if quant_type.value.startswith(incomplete):
            yield quant_type.value, QUANT_TYPES[quant_type].description_en


def complete_checkpoint(incomplete: str) -> Iterator[str]:
    """Checkpoints for the shell: the words, and what lies in the directory that is typed, else in the working one."""
    above, slash, _ = incomplete.rpartition("/")
    names = [*CHECKPOINT_WORDS]
    with contextlib.suppress(OSError):
        place = Path(above or ("/" if slash else ".")).expanduser()
        names += sorted(entry.name for entry in place.iterdir() if entry.is_dir())
    yield from (name for name in (f"{above}{slash}{entry}" for entry in names) if name.startswith(incomplete))


_COMPLETIONS: Final[dict[str, Callable[..., Any]]] = {
    "template": complete_template,
    "quant_types": complete_quant_type,
    "checkpoint": complete_checkpoint,
}
SET_PATH: Final = "options"
"""The row whose flag takes ``option=value``."""


def parameter_name(flag: Flag | Twin) -> str:
    """The flag's name in Python."""
    return flag.name.lstrip("-").replace("-", "_")


_PATHS: Final = {parameter_name(row.flag): row.path for row in FIELDS if row.flag}
_TWINS: Final = {parameter_name(twin): (row, twin) for row in FIELDS if row.flag for twin in row.flag.twins}
_FILES: Final = {parameter_name(row.file_flag): row.path for row in FIELDS if row.file_flag}


_SPOKEN: Final = {row.path: row.flag.name for row in FIELDS if row.flag} | {"allow_requantize": "--allow-requantize"}
"""What a message calls a field, and what the command line calls it."""
_NAME: Final = re.compile(r"`([a-z_.]+)`|(?<![\w.`/-])([a-z]+_[a-z_]+)(?![\w/-])(?=:|\b)")


def in_flags(text: str) -> str:
    """A message or remedy as the command line says it: the flag in place of the field that HTTP and Python name.

    Names stand between backticks, or have an underscore; a word such as ``checkpoint`` alone stays a word.
    """

    def spoken(match: re.Match[str]) -> str:
        flag = _SPOKEN.get(match[1] or match[2])
        return match[0] if flag is None else f"`{flag}`" if match[1] else flag

    return _NAME.sub(spoken, text)


class FlagGroup:
    """Flags that always travel together: a parameter of such a type gives a command all of them.

    Derived from it are frozen dataclasses with a flag in each field's annotation.
    """

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The flags as parameters of a command."""
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(cls, name, inspect.Parameter.empty),
                annotation=kind,
            )
            for name, kind in get_type_hints(cls, include_extras=True).items()
        ]

    @classmethod
    def of(cls, values: Mapping[str, Any], given: Callable[[str], bool]) -> Self:
        """From what the command line says.

        Args:
            values: Of all flags, by their names in Python.
            given: Whether one was given, and its value is not its default.
        """
        del given
        return cls(**values)


class RequestFlags(FlagGroup):
    """Values of the flags as typed, by path; ``requests.build_request`` makes a request of them.

    ``PREFIXES`` are beginnings of the paths whose flags a command has.

    Args:
        given: By the flag's name in Python; ``None`` where it was not given.

    Raises:
        TypeError: a name that no flag has.
        PackagingError: ``request_invalid`` where a switch is turned on and off.
    """

    PREFIXES: tuple[str, ...] = ("",)

    def __init__(self, **given: Any) -> None:
        unknown = given.keys() - _PATHS.keys() - _FILES.keys() - _TWINS.keys()
        if unknown:
            raise TypeError(f"no such flag: {', '.join(sorted(unknown))}")
        there = {name: value for name, value in given.items() if value is not None}
        self.values: dict[str, Any] = {_PATHS[name]: value for name, value in there.items() if name in _PATHS}
        for name in there.keys() & _TWINS.keys():
            self._say(*_TWINS[name])
        self.files: dict[str, Path] = {_FILES[name]: value for name, value in there.items() if name in _FILES}

    def _say(self, row: RequestField, twin: Twin) -> None:
        """Take what a twin says; a switch is told of as its first flag would tell it."""
        if self.values.setdefault(row.path, twin.turns) is not twin.turns:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"{twin.name} and its contrary are both given",
                fields={"field": row.path},
            )

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """As of any group: one flag for each row of the table of request fields that has one."""
        return flag_parameters(cls)

    @classmethod
    def of(cls, values: Mapping[str, Any], given: Callable[[str], bool]) -> Self:
        """As of any group; only flags that were given count."""
        return cls(**{name: value for name, value in values.items() if given(name)})


class MixtureFlags(RequestFlags):
    """The flags that decide tensors' types, for commands on kept files."""

    PREFIXES: tuple[str, ...] = ("fit.", "recipe.")


class QuantizingFlags(MixtureFlags):
    """The same, and what else decides the bytes of kept files."""

    PREFIXES = (*MixtureFlags.PREFIXES, "lattice")


def flag_parameters(kind: type[RequestFlags] = RequestFlags) -> list[inspect.Parameter]:
    """The flags as parameters of a command."""
    rows = [row for row in FIELDS if row.path.startswith(kind.PREFIXES)]
    flags = [flag for row in rows if row.flag for flag in (_parameter(row, row.flag), *_twins(row, row.flag))]
    return flags + [_file_parameter(row, row.file_flag) for row in rows if row.file_flag]


def _twins(row: RequestField, flag: Flag) -> Iterator[inspect.Parameter]:
    for twin in flag.twins:
        option = typer.Option(twin.name, help=twin.about.en, rich_help_panel=row.group.value.en, metavar="")
        yield inspect.Parameter(
            parameter_name(twin), inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
        )


def _file_parameter(row: RequestField, flag: Flag) -> inspect.Parameter:
    option = typer.Option(
        flag.name, help=(flag.about or row.about).en, rich_help_panel=row.group.value.en, metavar=flag.metavar
    )
    return inspect.Parameter(
        parameter_name(flag),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, option],
    )


def _parameter(row: RequestField, flag: Flag) -> inspect.Parameter:
    choices = [*row.choices]
    option = typer.Option(
        *(name for name in (flag.name, flag.short) if name),
        help=(flag.about or row.about).en,
        rich_help_panel=row.group.value.en,
        metavar=flag.metavar,
        autocompletion=_COMPLETIONS.get(row.path) or ((lambda: choices) if choices else None),
    )
    kind, default = _type_and_default(row)
    return inspect.Parameter(
        parameter_name(flag), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _type_and_default(row: RequestField) -> tuple[Any, Any]:
    if row.kind is FieldKind.SWITCH:
        return bool, False
    if row.kind in _REPEATED or row.path == SET_PATH:
        return list[str] | None, None
    if row.kind is FieldKind.NUMBER:
        return int | None, None
    if row.kind is FieldKind.FRACTION:
        return float | None, None
    # A default that says something is shown in the help; no other is a text.
    default = value_at(_DEFAULTS, row.path)
    return (str, default) if isinstance(default, str) else (str | None, None)

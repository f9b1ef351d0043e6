"""What a row of the table of request fields is made of; the table itself is ``request_fields``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from api_client.contract.errors import ErrorCode


class Bilingual(NamedTuple):
    """A text in both languages."""

    en: str
    zh: str


class FieldKind(Enum):
    """What a value is; decides how it is written as text, and what its flag and control are like."""

    TEXT = "text"
    PATH = "path"
    NUMBER = "number"
    """A whole one."""
    FRACTION = "fraction"
    """A number that need not be whole."""
    SIZE = "size"
    """Bytes; also ``500M`` or ``2G`` where a person writes it."""
    SWITCH = "switch"
    """On or off. Its flag turns the default around, e.g. ``--overwrite``, ``--no-upload``."""
    CHOICE = "choice"
    LIST = "list"
    """Several names; its flag may be repeated or separated by commas."""
    PAIRS = "pairs"
    """``key=value``; its flag may be repeated, its control has one a line."""
    LINES = "lines"
    """Several texts, none with a blank; its flag may be repeated, its control has one a line."""
    PARTS = "parts"
    """Has rows of its own, whose paths begin with this one's."""


class FieldGroup(Enum):
    """Headings under which the help lists flags."""

    WHAT = Bilingual("What to package", "打包内容")
    HOW = Bilingual("How", "方式")
    QUEUE = Bilingual("Queueing", "排队")


class Twin(NamedTuple):
    """Another flag of a switch.

    Attributes:
        name: With its dashes.
        about: Help.
        turns: Whether it turns the default around as the first flag does, or says the default aloud.
    """

    name: str
    about: Bilingual
    turns: bool = True


@dataclass(frozen=True)
class Flag:
    """A flag of the command line.

    Attributes:
        name: With its dashes.
        short: One-letter form.
        metavar: What stands for the value in the help.
        about: Help, where the field's own text does not fit the flag.
        twins: Of a switch: further flags, by which people look for it.
    """

    name: str
    short: str = ""
    metavar: str = ""
    about: Bilingual | None = None
    twins: tuple[Twin, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that may be typed."""
        return tuple(name for name in (self.name, self.short, *(twin.name for twin in self.twins)) if name)


@dataclass(frozen=True)
class Control:
    """A control of the new job page.

    Attributes:
        name: In the form. Fields that share a control have one name.
        section: ``task`` or ``more`` where the page makes the control from this row alone; empty where it has a part of
            its own.
        label: Its label.
        hint: What stands beneath.
    """

    name: str
    section: str
    label: Bilingual
    hint: Bilingual | None = None


@dataclass(frozen=True)
class RequestField:
    """One field of a request, or one part of a field.

    Attributes:
        path: In the request, e.g. ``imatrix.chunks``.
        kind: What its value is.
        group: Heading in the help.
        about: What it is, for every face.
        flag: Its flag; ``None`` where another row's says it.
        control: Its control; ``None`` where the page does not ask.
        choices: The values of a choice, each with what the page calls it.
        codes: Errors that are about this field.
        file_flag: A flag that takes a file of lines, which come after those of ``flag``.
    """

    path: str
    kind: FieldKind
    group: FieldGroup
    about: Bilingual
    flag: Flag | None = None
    control: Control | None = None
    choices: Mapping[str, Bilingual] = field(default_factory=dict)
    codes: tuple[ErrorCode, ...] = ()
    file_flag: Flag | None = None

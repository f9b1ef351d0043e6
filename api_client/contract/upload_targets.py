"""Places that a job's files are published to beside their directory: a repository of the Hub, an OCI registry.

Forms: ``hf://owner/name``; ``oci://registry/repository[:tag]``. The grammar of the latter is that of the OCI
distribution specification 1.1 ("Pulling manifests": names and tags) with the registry's host, and port, in front, as
Docker writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BeforeValidator

_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})", re.ASCII)
_OCI = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?)/"
    r"(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?",
    re.ASCII,
)
_MAX_LENGTH = 300


class TargetKind(StrEnum):
    """Where a target lies; its scheme."""

    HUB = "hf"
    REGISTRY = "oci"


@dataclass(frozen=True)
class UploadTarget:
    """A target, taken apart.

    Attributes:
        kind: The Hub, or an OCI registry.
        host: The registry, with its port where one is given; of the Hub nothing.
        name: ``owner/name``, or the repository's name in the registry.
        tag: What the registry's tags begin with, where something is given.
    """

    kind: TargetKind
    host: str
    name: str
    tag: str | None = None

    @classmethod
    def parse(cls, location: str) -> Self:
        """Read a target.

        Raises:
            ValueError: What is wrong with it, for a sentence that names it.
        """
        scheme, separator, rest = location.partition("://")
        if not separator or scheme not in list(TargetKind):
            raise ValueError("must be hf://owner/name or oci://registry/repository:tag")
        if len(location) > _MAX_LENGTH:
            raise ValueError(f"is too long: {len(location)} characters, at most {_MAX_LENGTH}")
        kind = TargetKind(scheme)
        if kind is TargetKind.HUB:
            match = _HUB.fullmatch(rest)
            if match is None or ".." in rest or "--" in rest:
                raise ValueError("must be hf://owner/name, with letters, digits and single . _ - in it")
            return cls(kind, "", match["name"])
        match = _OCI.fullmatch(rest)
        if match is None:
            raise ValueError("must be oci://registry/repository:tag, the repository in small letters")
        return cls(kind, match["host"], match["name"], match["tag"])

    def __str__(self) -> str:
        """As given."""
        place = f"{self.host}/{self.name}" if self.host else self.name
        return f"{self.kind}://{place}" + (f":{self.tag}" if self.tag else "")


def _checked(value: Any) -> Any:
    return str(UploadTarget.parse(value)) if isinstance(value, str) else value


TargetLocation = Annotated[str, BeforeValidator(_checked)]
"""A target as a request has it."""

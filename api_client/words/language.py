"""The languages that texts are written in."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Language(StrEnum):
    """A language that phrases, causes and remedies are written in."""

    EN = "en"
    ZH = "zh"

    def choose(self, english: str, chinese: str) -> str:
        """The text of the two that is in this language."""
        return chinese if self is Language.ZH else english


def language_of(environment: Mapping[str, str]) -> Language:
    """The language of a locale: Chinese for ``zh*``, English for everything else."""
    name = next((environment[key] for key in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(key)), "")
    return Language.ZH if name.lower().startswith("zh") else Language.EN

"""The help in the caller's language: the finished command tree is walked once, and its texts are exchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from typer import rich_utils

from api_client.cli.foreign import fold_help_texts
from api_client.cli.help_zh import HELP_ZH
from api_client.words.language import Language

_TEXTS = ("help", "short_help", "epilog", "rich_help_panel")
_TITLES = {"ARGUMENTS_PANEL_TITLE": "Arguments", "COMMANDS_PANEL_TITLE": "Commands", "OPTIONS_PANEL_TITLE": "Options"}
_COMMAND = re.compile(r"([A-Z_]+=\S+ )?trainpack [^\[]*|\{.*\}|\[\\\[\w+\]\]|\w+ = .*")
"""A command to type, or a line of a file to write."""


fold_help_texts()


def translate_help(command: Any, language: Language) -> None:
    """Put the help of a command and its subcommands into a language; English is there already."""
    for name, title in _TITLES.items():
        setattr(rich_utils, name, in_chinese(title) if language is Language.ZH else title)
    exchange(command, in_chinese if language is Language.ZH else str)


def exchange(command: Any, change: Callable[[str], str], parent: Any = None) -> None:
    """Exchange every text of a command tree; ``parent`` is the context of the command above.

    ``--help`` loses the type that is shown beside it, as the other switches have.
    """
    # A context of its own kind, since the names of --help are inherited from command to command.
    context = command.context_class(command, parent=parent, info_name=command.name, **command.context_settings)
    help_option = command.get_help_option(context)
    help_option.metavar = ""
    for holder in (command, *command.params, help_option):
        for name in _TEXTS:
            text = getattr(holder, name, None)
            if text:
                setattr(holder, name, change(text))
    for subcommand in getattr(command, "commands", {}).values():
        exchange(subcommand, change, context)


def in_chinese(text: str) -> str:
    """A help text in Chinese, paragraph by paragraph; a command line to type stays as it is."""
    return "\n\n".join(_paragraph(paragraph) for paragraph in text.rstrip().split("\n\n"))


def _paragraph(text: str) -> str:
    words = text.strip()
    indent = text[: len(text) - len(text.lstrip())]
    return indent + HELP_ZH.get(words, words)


def untranslated(command: Any) -> list[str]:
    """Paragraphs of a command tree that the table does not have, command lines and lines of files apart."""
    missing: list[str] = []

    def note(text: str) -> str:
        words = (paragraph.strip() for paragraph in text.split("\n\n"))
        missing.extend(w for w in words if w not in HELP_ZH and not _COMMAND.fullmatch(w))
        return text

    exchange(command, note)
    return missing

"""What the command line relies on inside typer, with the reason; ``tests/unit/test_foreign.py`` tries it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer import rich_utils


def fold_help_texts() -> None:
    """Have typer's help tables fold a long text. Chinese has few spaces to wrap at, and the tables would cut it off."""
    make_text: Callable[..., Any] = rich_utils._make_rich_text

    def make(**given: Any) -> Any:
        text = make_text(**given)
        text.overflow = "fold"
        return text

    rich_utils._make_rich_text = make

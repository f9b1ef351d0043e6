"""A packaged file in llama.cpp, asked greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from worker.models.verify.ask import Question
from worker.models.verify.load import answers_of

_CONTEXT_TOKENS = 2048


def ask_file(path: Path, prompts: Sequence[str], *, chat: bool, max_tokens: int, threads: int) -> list[str]:
    """Answers of a file, in the order of the prompts.

    Args:
        path: The file, or its first shard.
        prompts: What to ask, each on its own, of a file that is loaded once.
        chat: Through the file's own chat template; otherwise the text is continued.
        max_tokens: Longest answer.
        threads: Of llama.cpp.

    Raises:
        PackagingError: ``output_does_not_load``, ``dependency_missing``.
    """
    question = Question(
        str(path),
        prompt=prompts[0],
        others=tuple(prompts[1:]),
        until_end=True,
        chat=chat,
        max_tokens=max_tokens,
        threads=threads,
        context_tokens=_CONTEXT_TOKENS,
    )
    return [text.strip() for text in answers_of(question)]

"""Does llama.cpp cut a rendered chat into the tokens that training saw?

A file can load and write and still read every prompt otherwise than its training did: a control token that arrives as
letters, a word cut elsewhere. So the run's own template is rendered, and the ids of its ``tokenizer.json`` are compared
with those that llama.cpp makes of the text, one by one. A difference is refused, but for one: of sentencepiece models
whose tokenizer puts no space after a control token (Mistral 0.3 and others that are not "legacy"), llama.cpp puts one
there, in every file that anybody makes of them. That is how they are used everywhere; it is told as a warning.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.convert.tokenizer import JSON, TokenizerChoice, special_token

_CHAT = (
    {"role": "user", "content": "Hello, how are you? 2026"},
    {"role": "assistant", "content": "I'm fine, thanks."},
    {"role": "user", "content": "Tell me of the sea, in Chinese: 大海。"},
)
QUESTION = "What is the capital of France?"
"""One whose answer a person can judge at a glance."""
_NAMED = ("bos", "eos", "pad", "unk")
_BESIDE = 3
_SPACE = "▁"
"""How sentencepiece writes one."""
TEMPLATE_S = 10.0
"""Longest time for a template to render a short chat; a template is a program, and may never end."""


@dataclass(frozen=True)
class Rendered:
    """A chat as training saw it.

    Attributes:
        text: What the template makes of it.
        ids: Its tokens by ``tokenizer.json``, nothing put before or after.
        question: What the template makes of :data:`QUESTION`; empty where it makes nothing of a question alone.
        tokenizer: What cut it.
    """

    text: str
    ids: tuple[int, ...]
    question: str = ""
    tokenizer: Tokenizer | None = field(default=None, repr=False, compare=False)

    def apart_by_spaces(self, ids: Sequence[int]) -> bool:
        """Whether other ids are the same but for spaces right after control tokens and at the beginning."""
        return self.tokenizer is not None and self._stretches(self.ids) == self._stretches(ids)

    def _stretches(self, ids: Sequence[int]) -> list[tuple[int | None, str]]:
        """Each control token with the text after it, without the spaces that this text begins with."""
        assert self.tokenizer is not None
        controls = {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        stretches: list[tuple[int | None, str]] = [(None, "")]
        for token in ids:
            if token in controls:
                stretches.append((token, ""))
            else:
                control, text = stretches[-1]
                stretches[-1] = (control, text + (self.tokenizer.id_to_token(token) or f"<{token}>"))
        return [(control, text.lstrip(_SPACE)) for control, text in stretches]


def rendered_chat(choice: TokenizerChoice) -> Rendered | None:
    """The tokens of a short chat; None where the tokenizer has no template, no ``tokenizer.json`` or no use for one.

    A template that refuses an answer before a question is given a question alone.

    Raises:
        PackagingError: ``tokenizer_unsupported`` where ``tokenizer.json`` is one that transformers could not open.
    """
    template = _default_template(choice)
    if template is None or JSON not in choice.files:
        return None
    tokenizer = _opened(choice)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names = {f"{kind}_token": special_token(choice, kind) or "" for kind in _NAMED}
    text = _render(template, _CHAT, names) or _render(template, _CHAT[:1], names)
    if not text:
        return None
    question = _render(template, [{"role": "user", "content": QUESTION}], names) or ""
    return Rendered(text, tuple(tokenizer.encode(text, add_special_tokens=False).ids), question, tokenizer)


def _opened(choice: TokenizerChoice) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(choice.files[JSON]))
    except Exception as error:  # the package has no class of its own for a file that it cannot read
        raise PackagingError(
            ErrorCode.TOKENIZER_UNSUPPORTED, f"{JSON} in {choice.directory} cannot be opened: {str(error)[:200]}"
        ) from error


def check_tokens(name: str, expected: Rendered, read_ids: Sequence[int]) -> bool:
    """Refuse a file that reads the chat otherwise.

    Args:
        name: The file's name.
        expected: What training saw.
        read_ids: What llama.cpp made of the same text.

    Returns:
        Whether the ids are the same; False where only spaces after control tokens set them apart.

    Raises:
        PackagingError: ``tokenizer_unsupported``, with the first place that differs.
    """
    if tuple(read_ids) == expected.ids:
        return True
    if expected.apart_by_spaces(read_ids):
        return False
    pairs = enumerate(zip(expected.ids, read_ids, strict=False))
    at = next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(expected.ids), len(read_ids)))
    trained, read = expected.ids[at : at + _BESIDE], tuple(read_ids[at : at + _BESIDE])
    raise PackagingError(
        ErrorCode.TOKENIZER_UNSUPPORTED,
        f"llama.cpp reads a chat in {name} otherwise than {JSON} does: token {at} and on are "
        f"{_listed(read)}, trained were {_listed(trained)}",
        remedy="The file would read every prompt otherwise than training did. To publish it all the same, set "
        "TRAINPACK_VERIFY_LOAD=false on the worker.",
        fields={"file": name, "at": at, "trained": list(trained), "read": list(read)},
    )


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "none"


def _default_template(choice: TokenizerChoice) -> str | None:
    template = choice.chat_template
    if isinstance(template, list):
        named = {item["name"]: item["template"] for item in template}
        return named.get("default")
    return template


class _TooLong(BaseException):
    """Not an ``Exception``, so that nothing in a template's way catches it."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer. Only a process's first thread can be, and a stage runs in that one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_long(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _render(template: str, chat: Sequence[dict[str, str]], names: dict[str, str]) -> str | None:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        with _within(TEMPLATE_S):
            texts, _ = render_jinja_template([list(chat)], chat_template=template, add_generation_prompt=True, **names)
    except _TooLong as error:
        raise PackagingError(
            ErrorCode.TOKENIZER_UNSUPPORTED,
            f"the chat template did not render a short chat within {TEMPLATE_S:g} s",
            remedy="Whatever runs the model would hang as well. Correct chat_template in the checkpoint's tokenizer.",
            fields={"limit_s": TEMPLATE_S},
        ) from error
    except Exception:  # a template is a program of the model's, in a sandbox; what it raises says nothing of the tokens
        return None
    return str(texts[0])

"""``ask``: a question to a packaged model, or a chat with it, beside the model that it was made from."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from api_client.cli.arguments import complete_job
from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE
from api_client.cli.output import Output
from worker.local.subject import AskedModel, base_gguf, subject_of

if TYPE_CHECKING:
    from worker.models.chat.session import ChatSession, Message

ASK_EXAMPLES = """[bold]Examples[/bold]

  trainpack ask merged_model-Q4_K_M.gguf "What did you learn?"

  trainpack ask last --base          [dim]# a chat, side by side with the model it was made from[/dim]
"""
MAX_TOKENS = 256


def ask(
    output: Output,
    *,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="FILE|JOB", help="A GGUF file, a directory of a package, or a job.", autocompletion=complete_job
        ),
    ],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="A question; a chat where left out.", show_default=False)
    ] = None,
    base: Annotated[bool, typer.Option("--base", metavar="", help="Ask the model that it was made from, too.")] = False,
    base_model: Annotated[
        Path | None,
        typer.Option(
            "--base-model", help="That model, where no manifest names it: a directory or GGUF.", metavar="PATH"
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Longest answer.", min=1, max=100_000, metavar="N")
    ] = MAX_TOKENS,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads; all cores by default.", min=1, max=1024, metavar="N")
    ] = None,
) -> int:
    """Ask a packaged model in llama.cpp, through its own chat template.

    Without a question it is a chat, until Ctrl-D. Answers are greedy: the same question gets the same answer. An
    adapter is asked on its base model. With --base both answer, the base first.
    """
    asked = subject_of(subject)
    with opened(output, asked, base_model, threads, with_base=base or base_model is not None) as voices:
        if question is None:
            _talk(output, voices, max_tokens)
        elif output.as_json:
            answers = answers_of(voices, question, max_tokens)
            output.document({"file": str(asked.lora or asked.model), "question": question, "answers": answers})
        else:
            say_answers(output, voices, question, max_tokens)
    return DONE


@contextlib.contextmanager
def opened(
    output: Output, subject: AskedModel, base_model: Path | None, threads: int | None, *, with_base: bool
) -> Iterator[dict[str, ChatSession]]:
    """The models that answer, by what they are called: ``base`` where it is asked for, and ``packaged``."""
    with needs_extra("worker"), contextlib.ExitStack() as stack:
        from worker.models.chat.session import ChatSession
        from worker.models.quantize.engine import available_cpus

        count = threads or available_cpus()
        waiting = output.notes.status(output.text("loading")) if output.live else contextlib.nullcontext()
        with waiting:
            base = (
                stack.enter_context(base_gguf(subject, base_model)) if with_base or subject.lora is not None else None
            )
            model = subject.model or base
            assert model is not None, "an adapter has a base"
            voices = {"base": stack.enter_context(ChatSession(base, threads=count))} if with_base and base else {}
            voices["packaged"] = stack.enter_context(ChatSession(model, lora=subject.lora, threads=count))
        yield voices


def answers_of(voices: dict[str, ChatSession], question: str, max_tokens: int) -> dict[str, str]:
    """What everyone answers to a question, by name."""
    chat: list[Message] = [{"role": "user", "content": question}]
    return {name: "".join(voice.answer(chat, max_tokens)).strip() for name, voice in voices.items()}


def say_answers(output: Output, voices: dict[str, ChatSession], question: str, max_tokens: int) -> None:
    """Write what everyone answers as it comes."""
    for name, voice in voices.items():
        _say(output, name if len(voices) > 1 else "", voice, [{"role": "user", "content": question}], max_tokens)


def _talk(output: Output, voices: dict[str, ChatSession], max_tokens: int) -> None:
    """A chat from the terminal or from lines of standard input; everyone remembers what was said."""
    chats: dict[str, list[Message]] = {name: [] for name in voices}
    while (line := _line()) is not None:
        if not line.strip():
            continue
        for name, voice in voices.items():
            chats[name].append({"role": "user", "content": line})
            said = _say(output, name if len(voices) > 1 else "", voice, chats[name], max_tokens)
            chats[name].append({"role": "assistant", "content": said})


def _line() -> str | None:
    try:
        return input("> ") if sys.stdin.isatty() else next(sys.stdin, None)
    except EOFError:
        return None


def _say(output: Output, name: str, voice: ChatSession, chat: list[Message], max_tokens: int) -> str:
    """Write an answer as it comes."""
    label = f"{output.text(f'voice_{name}')}: " if name else ""
    output.results.print(Text(label, style="bold"), end="", soft_wrap=True)
    said = ""
    for piece in voice.answer(chat, max_tokens):
        shown = piece if said else piece.lstrip()
        said += shown
        output.results.print(Text(shown), end="", soft_wrap=True)
    output.results.print()
    return said

"""Golden questions: asked of the trained model and of every file, kept for replays, judged by what they have to hold.

Answers are kept in scratch under a digest of the file, the questions and how they are asked, so that a replay with
another bound asks nothing again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact
from api_client.contract.quality import REFERENCE, Answer, AskedQuestion
from worker.models.convert.metadata import end_tokens
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.questions.files import read_questions
from worker.models.questions.packaged import ask_file
from worker.models.questions.reference import ask_reference
from worker.models.verify.load import loader_installed
from worker.models.verify.purpose import Purpose, purpose_of
from worker.stages.context import StageContext
from worker.stages.inputs import job_base, job_overlay, job_tokenizer
from worker.storage.atomic import atomic_write_text

MAX_TOKENS = 64
"""Longest answer."""
_KEPT = "answers.json"
_NOT_ASKED = frozenset(
    {ErrorCode.UNSUPPORTED_ARCHITECTURE, ErrorCode.BASE_MODEL_INVALID, ErrorCode.BASE_MODEL_QUANTIZED}
)


def questions_of_job(context: StageContext) -> dict[str, str]:
    """What the request asks, itself and in its file.

    Raises:
        PackagingError: ``request_invalid`` for a file that holds no questions.
    """
    file = context.prepared.evaluation.questions_file
    return context.request.evaluation.questions | (read_questions(file) if file is not None else {})


def ask_all(context: StageContext, files: Sequence[Artifact], questions: dict[str, str]) -> tuple[AskedQuestion, ...]:
    """Every question with all answers, the trained model's first. Whoever could not be asked has no answer.

    Raises:
        PackagingError: ``output_does_not_load``.
        StopRequested: when asked to stop; what was asked is kept.
    """
    prompts = list(questions)
    kept = _Kept(context.scratch / _KEPT, [*prompts, str(MAX_TOKENS)])
    base = job_base(context)
    tokenizer = load_tokenizer(job_tokenizer(context), base.config)
    said: dict[str, list[str]] = {}

    def reference() -> list[str]:
        return ask_reference(
            base,
            job_overlay(context),
            tokenizer,
            prompts,
            max_tokens=MAX_TOKENS,
            ends=end_tokens(job_tokenizer(context), base.config),
            should_stop=context.report.should_stop,
        )

    try:
        said[REFERENCE] = kept.answers(f"{REFERENCE} of {files[0].sha256}", reference)
    except PackagingError as error:
        if error.code not in _NOT_ASKED:
            raise
        context.report.log(f"The trained model itself is not asked: {error.message}", level="warning")
    for file in files if _can_ask(context) else ():
        context.stop_point()
        if purpose_of(Path(file.path)) is Purpose.WRITE:
            said[file.name] = kept.answers(file.sha256, partial(_asked, context, file, tokenizer, prompts))
    return tuple(
        AskedQuestion(
            question=prompt,
            expected=expected or None,
            answers=tuple(_answer(by, texts[number], expected) for by, texts in said.items()),
        )
        for number, (prompt, expected) in enumerate(questions.items())
    )


def unmet(asked: Sequence[AskedQuestion], files: Sequence[Artifact]) -> Iterator[tuple[str, str, str]]:
    """Files whose answer lacks what is expected: the file, the question, and a sentence about it."""
    for question in asked:
        if question.expected is None:
            continue
        answers = {answer.by: answer for answer in question.answers}
        for file in files:
            answer = answers.get(file.name)
            if answer is None:
                yield file.name, question.question, f"{file.name} could not be asked {question.question!r}"
            elif not answer.expected_found:
                text = f"{file.name} answers {answer.text!r} to {question.question!r}, without {question.expected!r}"
                yield file.name, question.question, text


def _can_ask(context: StageContext) -> bool:
    if loader_installed():
        return True
    context.report.log("llama.cpp is not installed here, so no file is asked", level="warning")
    return False


def _asked(context: StageContext, file: Artifact, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    chat = bool(tokenizer.chat_template)
    threads = context.settings.threads
    return ask_file(Path(file.path), prompts, chat=chat, max_tokens=MAX_TOKENS, threads=threads)


def _answer(by: str, text: str, expected: str) -> Answer:
    as_expected = expected.casefold() in text.casefold() if expected else None
    return Answer(by=by, text=text, expected_found=as_expected)


class _Kept:
    """Answers of earlier attempts, by who was asked."""

    def __init__(self, path: Path, asked: Sequence[str]) -> None:
        self._path = path
        self._asked = json.dumps(list(asked))
        try:
            stored = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):  # none, or cut short
            stored = {}
        self._known: dict[str, list[str]] = stored if isinstance(stored, dict) else {}

    def answers(self, of: str, ask: Callable[[], list[str]]) -> list[str]:
        """What was answered before, else what is answered now."""
        key = hashlib.sha256(f"{of} {self._asked}".encode()).hexdigest()
        if key not in self._known:
            self._known[key] = ask()
            atomic_write_text(self._path, json.dumps(self._known))
        return self._known[key]

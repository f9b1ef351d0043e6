"""Prove that a GGUF file works: llama.cpp loads it, and it writes, embeds or ranks, as it is for.

The proof runs in a process of its own (``ask``).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.verify.ask import NO_LLAMA_CPP, Question
from worker.models.verify.purpose import Purpose, pooling_is_set, purpose_of
from worker.models.verify.reason import NOT_RUN, last_lines, reason_of
from worker.models.verify.tokens import QUESTION, Rendered, check_tokens

_STARVED_TIMES = 8
"""How many times as long a question may take by the clock on a machine that gives it little time."""
_SECONDS_PER_GB = 60.0
_BASE_TIMEOUT_S = 120.0
SPACES_READ = "; it reads a space after control tokens where training saw none"
_ANSWER = 12
"""Tokens of a short answer."""


def loader_installed() -> bool:
    """Whether llama.cpp (``xllamacpp``) is installed here."""
    return find_spec("xllamacpp") is not None


def prove(question: Question, chat: Rendered | None = None) -> str:
    """Load a file and have it do what its header says that it is for.

    Args:
        question: Its ``purpose``, ``pooled`` and ``cut`` are taken from the file and from ``chat``.
        chat: A chat that a file which writes must cut into the same tokens.

    Returns:
        What it did, as the end of a sentence that begins with its name.

    Raises:
        PackagingError: as :func:`generate`; ``output_does_not_load`` also where vectors are not finite, or are the same
            for two texts or throughout; ``tokenizer_unsupported`` as :func:`~worker.models.verify.tokens.check_tokens`.
    """
    path = Path(question.model)
    purpose = purpose_of(path)
    text = chat.text if chat is not None and purpose is Purpose.WRITE else ""
    question = replace(question, purpose=purpose, pooled=pooling_is_set(path), cut=text)
    if text and chat is not None and chat.question:
        question = replace(question, prompt=chat.question, may_end=True, max_tokens=max(question.max_tokens, _ANSWER))
    if purpose in (Purpose.EMBED, Purpose.RANK):
        vectors, _ = vectors_of(question)
        if purpose is Purpose.RANK:
            return f"ranks: {', '.join(f'{vector[0]:.4g}' for vector in vectors)}"
        return f"embeds texts as vectors of {len(vectors[0])} numbers"
    answer = _answered(question)
    alike = chat is None or not text or check_tokens(path.name, chat, answer["ids"])
    if purpose is Purpose.WRITE:
        said = " ".join(answer["text"].split())
        did = f'answers "{QUESTION}"' if question.may_end else f'continues "{question.prompt}"'
        return f'{did} with "{said}"' + ("" if alike else SPACES_READ)
    return "is not run: llama.cpp's server has no use for such a model"


def generate(question: Question) -> str:
    """Load a file and generate a few tokens.

    Returns:
        The generated text.

    Raises:
        PackagingError: ``output_does_not_load`` with the loader's own reason; ``dependency_missing`` where llama.cpp's
            package is installed and cannot be imported.
    """
    return str(_answered(question)["text"])


def vectors_of(question: Question) -> tuple[list[list[float]], list[list[int]]]:
    """Load a file and have it embed the prompt and the others, or rank the others for the prompt: one number each.

    Returns:
        The vectors, and of texts that were embedded their ids.

    Raises:
        PackagingError: as :func:`generate`; ``output_does_not_load`` also where vectors are not finite, or are the same
            for all texts or throughout.
    """
    question = replace(question, pooled=pooling_is_set(Path(question.model)))
    answer = _answered(question)
    vectors: list[list[float]] = answer["vectors"]
    _check_vectors(question, vectors)
    return vectors, answer.get("text_ids", [])


def read_prompts(question: Question) -> dict[str, Any]:
    """What llama.cpp makes of the question's ``texts`` and ``chats``: ``text_ids`` and ``prompts`` of its answer.

    Raises:
        PackagingError: as :func:`generate`.
    """
    return _answered(question)


def answers_of(question: Question) -> list[str]:
    """Load a file and ask its prompt and the others.

    Raises:
        PackagingError: as :func:`generate`.
    """
    return [str(text) for text in _answered(question)["texts"]]


def drafts_of(question: Question) -> tuple[int, int]:
    """Load a file and have it write, drafting with its own prediction layers (MTP, NextN).

    Returns:
        How many tokens were drafted, and how many of them the model itself then wrote.

    Raises:
        PackagingError: as :func:`generate`, also where llama.cpp cannot draft with such layers.
    """
    answer = _answered(replace(question, drafts=True))
    return int(answer["drafted"]), int(answer["accepted"])


def _answered(question: Question) -> dict[str, Any]:
    size_gb = Path(question.model).stat().st_size / 1e9
    timeout_s = (1 + len(question.others)) * (_BASE_TIMEOUT_S + _SECONDS_PER_GB * size_gb)
    try:
        done = _asked(question, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise _refused(question, f"no answer within {error.timeout:.0f} s", "") from error
    if done.returncode == NO_LLAMA_CPP:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            f"xllamacpp cannot be imported, so no output can be proven: {done.stderr.strip()}",
            fields={"package": "xllamacpp"},
        )
    if done.returncode != 0 and question.purpose == Purpose.LOAD and NOT_RUN in done.stderr:
        return {"text": "", "tokens": 0}
    if done.returncode != 0:
        raise _refused(question, reason_of(done.stderr, done.returncode), done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    proves = not (question.texts or question.chats or question.until_end)
    if question.purpose == Purpose.WRITE and proves and answer["tokens"] < min(1, question.max_tokens):
        raise _refused(question, "it loads but generates nothing", done.stderr)
    return answer


def _asked(question: Question, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a process that answers.

    Raises:
        subprocess.TimeoutExpired: it has had that many seconds of a processor, or :data:`_STARVED_TIMES` as many of the
            clock: a machine that gives it no time says nothing of the file.
    """
    command = [sys.executable, "-P", "-m", "worker.models.verify.ask"]
    # ggml would start a debugger to print where it aborts, which buries why
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    pipe = subprocess.PIPE
    given: str | None = question.to_json()
    began, wait_s = time.monotonic(), timeout_s
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment
    ) as process:
        try:
            while True:
                try:
                    output, errors = process.communicate(given, timeout=wait_s)
                    return subprocess.CompletedProcess(command, process.returncode, output, errors)
                except subprocess.TimeoutExpired:
                    taken_s = time.monotonic() - began
                    if _processor_s(process.pid) >= timeout_s or taken_s >= _STARVED_TIMES * timeout_s:
                        raise subprocess.TimeoutExpired(command, taken_s) from None
                    given, wait_s = None, timeout_s / 10
        except BaseException:
            process.kill()
            raise


def _processor_s(pid: int) -> float:
    """Seconds of processors that a process has had; none of one that has just ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _check_vectors(question: Question, vectors: Sequence[Sequence[float | None]]) -> None:
    numbers = [number for vector in vectors for number in vector]
    if not all(number is not None and math.isfinite(number) for number in numbers) or not all(vectors):
        raise _refused(question, "it loads, and its vectors hold values that are no numbers", "")
    if all(vector == vectors[0] for vector in vectors):
        raise _refused(question, "it loads, and gives two different texts the same vector", "")
    if len(vectors[0]) > 1 and any(len(set(vector)) == 1 for vector in vectors):
        raise _refused(question, "it loads, and all numbers of a vector are the same", "")


def _refused(question: Question, reason: str, stderr: str) -> PackagingError:
    name = Path(question.lora or question.model).name
    return PackagingError(
        ErrorCode.OUTPUT_DOES_NOT_LOAD,
        f"{name} does not work in llama.cpp: {reason}",
        fields={"file": name, "reason": reason, "loader_log": last_lines(stderr)},
    )

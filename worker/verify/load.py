"""Prove that a GGUF file works: llama.cpp loads it and generates. The proof runs in a process of its own (``ask``)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from api_client.errors import ErrorCode, PackagingError
from worker.verify.ask import NO_LLAMA_CPP, Question

_SECONDS_PER_GB = 60.0
_BASE_TIMEOUT_S = 120.0
_REASON = re.compile(r"error loading model: (?P<reason>.+)|\bE (?P<line>.+)")


def loader_installed() -> bool:
    """Whether llama.cpp (``xllamacpp``) is installed here."""
    return find_spec("xllamacpp") is not None


def generate(question: Question) -> str:
    """Load a file and generate a few tokens.

    Returns:
        The generated text.

    Raises:
        PackagingError: ``output_does_not_load`` with the loader's own reason; ``dependency_missing`` where llama.cpp's
            package is installed and cannot be imported.
    """
    size_gb = Path(question.model).stat().st_size / 1e9
    timeout_s = _BASE_TIMEOUT_S + _SECONDS_PER_GB * size_gb
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker.verify.ask"],
            input=question.to_json(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(question, f"no answer within {timeout_s:.0f} s", "") from error
    if done.returncode == NO_LLAMA_CPP:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            f"xllamacpp cannot be imported, so no output can be proven: {done.stderr.strip()}",
            fields={"package": "xllamacpp"},
        )
    if done.returncode != 0:
        raise _refused(question, _reason(done.stderr, done.returncode), done.stderr)
    answer = json.loads(done.stdout)
    if answer["tokens"] < min(1, question.max_tokens):
        raise _refused(question, "it loads but generates nothing", done.stderr)
    return str(answer["text"])


def _reason(stderr: str, code: int) -> str:
    """The loader's own words: the first line that says why, else the first error line, else how it died."""
    lines = [match for match in map(_REASON.search, stderr.splitlines()) if match]
    for match in lines:
        if match["reason"]:
            return match["reason"].strip()
    if lines:
        return lines[0]["line"].strip()
    return f"llama.cpp ended with signal {-code}" if code < 0 else f"llama.cpp ended with exit code {code}"


def _refused(question: Question, reason: str, stderr: str) -> PackagingError:
    name = Path(question.lora or question.model).name
    return PackagingError(
        ErrorCode.OUTPUT_DOES_NOT_LOAD,
        f"{name} does not work in llama.cpp: {reason}",
        fields={"file": name, "reason": reason, "loader_log": stderr.splitlines()[-15:]},
    )

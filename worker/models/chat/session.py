"""A chat with one GGUF file, loaded once. The file's own template makes the prompt; answers are greedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.verify.ask import NO_LLAMA_CPP, Question
from worker.models.verify.load import loader_installed
from worker.models.verify.reason import reason_of

CONTEXT_TOKENS = 4096
_END_S = 10.0


class Message(TypedDict):
    """One turn: who says it (``system``, ``user``, ``assistant``), and what."""

    role: str
    content: str


class ChatSession:
    """llama.cpp with one file, in a process of its own. ``with ChatSession(model) as chat: chat.answer(...)``.

    Args:
        model: The GGUF file, or its first shard where it is split.
        lora: An adapter GGUF to apply to it.
        threads: Threads of llama.cpp.
        context_tokens: Most tokens of a whole chat.

    Raises:
        PackagingError: ``dependency_missing`` without llama.cpp's package; ``output_does_not_load`` with the loader's
            reason where the file does not load, from ``__enter__``.
    """

    def __init__(
        self, model: Path, *, lora: Path | None = None, threads: int = 2, context_tokens: int = CONTEXT_TOKENS
    ) -> None:
        if not loader_installed():
            raise PackagingError(
                ErrorCode.DEPENDENCY_MISSING,
                "xllamacpp is not installed, and nothing else here can run a GGUF file",
                remedy="Install it: pip install 'trainpack[worker]'.",
                fields={"package": "xllamacpp"},
            )
        question = Question(str(model), lora=str(lora) if lora else None, threads=threads)
        self._question = replace(question, context_tokens=context_tokens)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.models.chat.program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            # ggml would start a debugger to print where it aborts, which buries why
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        try:
            self._send(self._question.to_json())
            self._read()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, messages: Sequence[Message], max_tokens: int) -> Iterator[str]:
        """The answer to a chat, piece by piece.

        Raises:
            PackagingError: ``output_does_not_load`` where llama.cpp fails on it; ``request_invalid`` with its reason
                where it refuses the chat.
        """
        self._send(json.dumps({"messages": list(messages), "max_tokens": max_tokens}))
        while True:
            reply = self._read()
            if "error" in reply:
                raise PackagingError(ErrorCode.REQUEST_INVALID, f"llama.cpp refuses the chat: {reply['error']}")
            if reply.get("done"):
                return
            yield str(reply["piece"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.close()
            process.wait(_END_S)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        finally:
            assert process.stdout is not None
            process.stdout.close()
            self._errors.close()

    def _send(self, line: str) -> None:
        assert self._process is not None, "the session is not open"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None

    def _read(self) -> dict[str, Any]:
        assert self._process is not None, "the session is not open"
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _failed(self) -> PackagingError:
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        told = self._errors.read().decode("utf-8", "replace")
        if code == NO_LLAMA_CPP:
            return PackagingError(ErrorCode.DEPENDENCY_MISSING, f"xllamacpp cannot be imported: {told.strip()}")
        name = Path(self._question.lora or self._question.model).name
        reason = reason_of(told, code)
        return PackagingError(
            ErrorCode.OUTPUT_DOES_NOT_LOAD, f"{name} does not work in llama.cpp: {reason}", fields={"file": name}
        )

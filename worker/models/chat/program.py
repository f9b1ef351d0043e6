"""Load a GGUF file once and answer in it again and again. A program of its own, as ``verify.ask`` is.

Run as ``python -m worker.models.chat.program``. Reads lines of JSON from standard input: first a
:class:`~worker.models.verify.ask.Question` that says which file, then ``{"messages": [...], "max_tokens": N}`` for each
answer. Writes lines of JSON: ``{"ready": true}`` once the file is loaded; for an answer ``{"piece": TEXT}`` as it is
written and ``{"done": true}`` at its end, or ``{"error": TEXT}``. Messages go through the file's own chat template.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from worker.models.verify.ask import NO_LLAMA_CPP, Question, open_server

_EVENT = b"data: "
_END = b"[DONE]"
_ERROR_BYTES = 2000


def pieces(address: str, key: str, asked: Mapping[str, Any]) -> Iterator[str]:
    """The answer to a chat, piece by piece, from the server's endpoint; greedy, so that it comes out the same again.

    Raises:
        RuntimeError: llama.cpp refuses the chat, e.g. one that is longer than its context.
    """
    body = json.dumps({**asked, "stream": True, "temperature": 0.0}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with build_opener(ProxyHandler({})).open(Request(f"{address}/v1/chat/completions", body, headers)) as reply:
            for line in reply:
                if line.startswith(_EVENT) and not line.startswith(_EVENT + _END):
                    yield from _texts(json.loads(line[len(_EVENT) :]))
    except HTTPError as error:
        raise RuntimeError(error.read(_ERROR_BYTES).decode("utf-8", "replace")) from error


def _texts(chunk: Mapping[str, Any]) -> Iterator[str]:
    if "error" in chunk:
        raise RuntimeError(json.dumps(chunk["error"]))
    for choice in chunk.get("choices", ()):
        delta = choice.get("delta", {})
        text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
        if text:
            yield text


def main() -> None:
    """Answer until standard input ends; what llama.cpp itself prints goes to standard error."""
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(**content: Any) -> None:
        answer_to.write(json.dumps(content) + "\n")

    try:
        server, key = open_server(Question(**json.loads(sys.stdin.readline())))
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_LLAMA_CPP)
    tell(ready=True)
    for line in sys.stdin:
        try:
            for piece in pieces(server.listening_address, key, json.loads(line)):
                tell(piece=piece)
            tell(done=True)
        except RuntimeError as error:
            tell(error=str(error))
    # llama.cpp's threads may outlive the server object; nothing is left to clean up
    answer_to.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

"""Load a GGUF file in llama.cpp and let it write, embed or rank. A program of its own.

It is run as ``python -m worker.models.verify.ask``, since llama.cpp may abort the process on a damaged file, and its
reasons for refusing one appear only on standard error; both are contained by running it apart from the stage. Reads a
:class:`Question` as JSON from standard input, writes ``{"text": ..., "tokens": ..., "vectors": ...}`` to standard
output.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from worker.models.verify.purpose import Purpose

NO_LLAMA_CPP = 69
"""Exit code where llama.cpp's Python package cannot be imported: sysexits' EX_UNAVAILABLE."""


_CUT_TIMEOUT_S = 60.0
_DRAFT_TOKENS = 1
"""Tokens drafted at a time: each draft is then a trial of its own, and one that is wrong costs least."""
OTHER_TEXT = "The sun rises in the east, and 345 birds sing."
"""Embedded or ranked beside the prompt where there are no others; the two must not come out the same."""


@dataclass(frozen=True)
class Question:
    """What to ask of which file.

    Attributes:
        model: Path of the GGUF file (of its first shard, where it is split).
        prompt: The user's message, put through the file's own chat template where ``chat`` is set.
        chat: Ask as a chat; otherwise continue the plain text.
        may_end: Stop where the model does, unless it writes nothing before.
        lora: Path of an adapter GGUF to apply at full strength.
        max_tokens: Most tokens to generate; 0 only loads the file.
        threads: Threads of llama.cpp.
        context_tokens: Context length to load with.
        purpose: What the file is for, a value of :class:`~worker.models.verify.purpose.Purpose`.
        pooled: The file says itself how to pool; otherwise the mean is taken.
        cut: A text to cut into tokens beside; its ids are ``ids`` of the answer.
        projector: Path of the projector that belongs to the file.
        senses: What to show or play with the prompt, one message part of the chat endpoint each (``image_url``,
            ``input_audio``).
        texts: Plain texts to cut with no token put before them and none read as control; ``text_ids`` of the answer,
            which are those of prompt and others where texts are embedded.
        chats: Bodies for the server's template endpoint; ``prompts`` of the answer has of each the ``text`` and its
            ``ids`` as the server cuts a prompt, or ``error``. Nothing is written where texts or chats are given.
        others: More prompts, each asked by itself of the same loaded file; ``texts`` of the answer has them all. More
            texts to embed, or the documents to rank for the prompt, where that is what the file is for.
        until_end: Stop where the model ends, and let an answer be empty; a proof of a file wants tokens.
        drafts: Draft with the file's own prediction layers (MTP, NextN); ``drafted`` and ``accepted`` of the answer are
            numbers of tokens, over all prompts.
    """

    model: str
    prompt: str = "Hello"
    chat: bool = False
    may_end: bool = False
    lora: str | None = None
    max_tokens: int = 8
    threads: int = 2
    context_tokens: int = 256
    purpose: str = Purpose.WRITE
    pooled: bool = False
    cut: str = ""
    projector: str | None = None
    senses: tuple[Mapping[str, Any], ...] = ()
    texts: Sequence[str] = ()
    chats: Sequence[Mapping[str, Any]] = ()
    others: Sequence[str] = ()
    until_end: bool = False
    drafts: bool = False

    def to_json(self) -> str:
        """JSON form for the program's standard input."""
        return json.dumps(asdict(self))


def open_server(question: Question) -> tuple[Any, str]:
    """Load the file in llama.cpp's server, which listens on a loopback port while it lives.

    Returns:
        The server, and the key that it asks of whoever comes over that port.

    Raises:
        RuntimeError: llama.cpp refuses the file; its reason is on standard error.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = question.model
    params.n_ctx = question.context_tokens
    params.n_predict = question.max_tokens
    params.n_parallel = 1
    params.cpuparams.n_threads = question.threads
    params.cpuparams_batch.n_threads = question.threads
    params.warmup = False
    params.api_keys = [secrets.token_hex(16)]
    params.ui = False
    params.use_jinja = True
    params.sampling.temp = 0.0
    if question.lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(question.lora, 1.0)]
    if question.projector is not None:
        params.mmproj.path = question.projector
        params.mmproj_use_gpu = False
    params.embedding = question.max_tokens == 0 or question.purpose != Purpose.WRITE
    if question.purpose == Purpose.RANK:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    elif question.purpose == Purpose.EMBED and not question.pooled:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if question.drafts:
        speculative = params.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        speculative.draft.n_max = _DRAFT_TOKENS
        params.speculative = speculative
    return xllamacpp.Server(params), params.api_keys[0]


def ask(question: Question) -> dict[str, Any]:
    """Load the file; generate greedily, embed two texts or rank them, as it is for.

    Raises:
        RuntimeError: as :func:`open_server`.
    """
    server, key = open_server(question)
    if question.purpose in (Purpose.EMBED, Purpose.RANK):
        answer = {"text": "", "tokens": 0, "vectors": _vectors(server, question)}
        return answer | ({"text_ids": _text_ids(server, key, question)} if question.purpose == Purpose.EMBED else {})
    endpoint = _Endpoint(server.listening_address, key)
    if question.texts or question.chats:
        return {
            "text": "",
            "tokens": 0,
            "text_ids": [endpoint.cut(text, special=False, begun=False) for text in question.texts],
            "prompts": [endpoint.prompt(chat) for chat in question.chats],
        }
    if question.max_tokens == 0 or question.purpose == Purpose.LOAD:
        return {"text": "", "tokens": 0}
    ids = {"ids": endpoint.cut(question.cut, special=True, begun=False)} if question.cut else {}
    answers = [_written(server, question, prompt) for prompt in (question.prompt, *question.others)]
    drafts = {key: sum(answer[key] for answer in answers) for key in ("drafted", "accepted")}
    return answers[0] | ids | drafts | {"texts": [answer["text"] for answer in answers]}


class _Endpoint:
    """The server's own address, for what its Python face does not offer."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._key = key

    def cut(self, text: str, *, special: bool, begun: bool) -> list[int]:
        """Ids of a text.

        Args:
            text: The text.
            special: Names of control tokens in it are those tokens.
            begun: The tokens that the model wants before a text are put there.
        """
        reply = self._post("tokenize", {"content": text, "add_special": begun, "parse_special": special})
        ids: list[int] = reply["tokens"]
        return ids

    def prompt(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        """A chat as the file's template renders it, and its ids as the server would cut it."""
        try:
            text = str(self._post("apply-template", chat)["prompt"])
        except HTTPError as error:
            return {"error": error.read().decode(errors="replace")[:300]}
        return {"text": text, "ids": self.cut(text, special=True, begun=True)}

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        request = Request(f"{self._address}/{path}", json.dumps(body).encode(), headers)
        with build_opener(ProxyHandler({})).open(request, timeout=_CUT_TIMEOUT_S) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer


def _vectors(server: Any, question: Question) -> list[list[float | None]]:
    """A vector of each text; of a ranking model, its one score. What is no number comes as None."""
    if question.purpose == Purpose.RANK:
        documents = [*question.others] or [question.prompt, OTHER_TEXT]
        reply = _decoded(server.handle_rerank({"query": question.prompt, "documents": documents}))
        return [
            [result["relevance_score"]] for result in sorted(reply["results"], key=lambda result: int(result["index"]))
        ]
    reply = _decoded(server.handle_embeddings({"input": [question.prompt, *(question.others or (OTHER_TEXT,))]}))
    return [item["embedding"] for item in sorted(reply["data"], key=lambda item: int(item["index"]))]


def _text_ids(server: Any, key: str, question: Question) -> list[list[int]]:
    """Ids of the texts that are embedded, as the server cuts them for it."""
    endpoint = _Endpoint(server.listening_address, key)
    return [endpoint.cut(text, special=True, begun=True) for text in (question.prompt, *question.others)]


def _written(server: Any, question: Question, prompt: str) -> dict[str, Any]:
    body: dict[str, Any] = {"max_tokens": question.max_tokens, "temperature": 0.0, "seed": 0, "cache_prompt": False}
    if question.chat:
        shown = [*question.senses, {"type": "text", "text": prompt}]
        body["messages"] = [{"role": "user", "content": shown if question.senses else prompt}]
        reply = _decoded(server.handle_chat_completions(body))
        text = reply["choices"][0]["message"]["content"] or ""
    else:
        body |= {"prompt": prompt, "ignore_eos": not (question.may_end or question.until_end)}
        reply = _decoded(server.handle_completions(body))
        if question.may_end and not reply["choices"][0]["text"].strip():
            # an untrained model may end at once; the proof wants tokens
            reply = _decoded(server.handle_completions(body | {"ignore_eos": True}))
        text = reply["choices"][0]["text"]
    timings = reply.get("timings", {})
    drafts = {"drafted": timings.get("draft_n", 0), "accepted": timings.get("draft_n_accepted", 0)}
    return {"text": text, "tokens": reply["usage"]["completion_tokens"], **drafts}


def _decoded(reply: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(reply) if isinstance(reply, str | bytes) else reply
    if "error" in data:
        raise RuntimeError(json.dumps(data["error"]))
    return data


def main() -> None:
    """Read a question, write the answer; what llama.cpp itself prints goes to standard error."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    question = Question(**json.load(sys.stdin))
    try:
        answer = json.dumps(ask(question)).encode()
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_LLAMA_CPP)
    os.write(answer_to, answer)
    # llama.cpp's threads may outlive the server object; nothing is left to clean up
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

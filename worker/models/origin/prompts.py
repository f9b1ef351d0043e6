"""Prompts as a server of the file makes them, against those of training: template, tokens, and where an answer ends.

Each case is rendered by llama.cpp with the template in the file, and by transformers with the run's own; then cut by
either. llama.cpp leaves a begin token that the template writes to its tokenizer, so that texts are compared without it
and the ids with it: doubled or missing it shows there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from api_client.contract.quality import OriginStep, StepWord
from worker.models.origin.steps import differs, not_checked, same

_ASK = {"role": "user", "content": "How far is the sea from here, in km?\n\n1. by road"}
_ANSWER = {"role": "assistant", "content": "About 12 km."}
_SYSTEM = {"role": "system", "content": "You answer in one sentence."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "distance",
        "description": "Distance between two places in km.",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string", "description": "The place."}},
            "required": ["to"],
        },
    },
}
_ENDS_BY_NAME = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
     "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
     "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["}
)  # fmt: skip
"""Tokens at which llama.cpp b11434 stops whatever the file says (``llama-vocab.cpp``)."""
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_BESIDE = 24


@dataclass(frozen=True)
class Case:
    """One kind of prompt, in the words of the server's template endpoint."""

    name: str
    messages: Sequence[Mapping[str, str]]
    generation: bool = True
    tools: Sequence[Mapping[str, Any]] = ()

    def body(self) -> dict[str, Any]:
        """What llama.cpp is sent."""
        body: dict[str, Any] = {"messages": list(self.messages), "add_generation_prompt": self.generation}
        return body | ({"tools": list(self.tools)} if self.tools else {})

    def rendered(self, tokenizer: Any) -> str | None:
        """As training rendered it; None where the template refuses it or has no place for its tools."""
        text = self._render(tokenizer, list(self.tools) or None)
        return None if self.tools and text == self._render(tokenizer, None) else text

    def _render(self, tokenizer: Any, tools: list[Mapping[str, Any]] | None) -> str | None:
        try:
            return str(
                tokenizer.apply_chat_template(
                    list(self.messages), tools=tools, add_generation_prompt=self.generation, tokenize=False
                )
            )
        except Exception:  # a template is a program of the model's, in a sandbox: what it refuses was not trained on
            return None


CASES = (
    Case("a single turn", [_ASK]),
    Case("several turns", [_ASK, _ANSWER, _ASK]),
    Case("a system message", [_SYSTEM, _ASK]),
    Case("tools", [_ASK], tools=[_TOOL]),
    Case("no generation prompt", [_ASK], generation=False),
)


@dataclass(frozen=True)
class Expected:
    """What training saw: the cases that its template takes, and the texts that are measured on."""

    cases: Sequence[tuple[Case, str]]
    texts: Sequence[str]

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str]) -> Expected:
        """Render all cases."""
        if not tokenizer.chat_template:
            return cls((), texts)
        return cls([(case, text) for case in CASES if (text := case.rendered(tokenizer)) is not None], texts)


def check_template(tokenizer: Any, expected: Expected, prompts: Sequence[Mapping[str, Any]]) -> OriginStep:
    """The rendered texts."""
    if not expected.cases:
        return not_checked(StepWord.TEMPLATE, "the tokenizer has no chat template")
    begin = tokenizer.bos_token or ""
    for (case, text), prompt in zip(expected.cases, prompts, strict=True):
        if "error" in prompt:
            return differs(StepWord.TEMPLATE, f"{case.name}: llama.cpp cannot render it: {prompt['error']}")
        trained, read = (text_of.removeprefix(begin) if begin else text_of for text_of in (text, str(prompt["text"])))
        if trained != read:
            at = next(
                place for place, pair in enumerate(zip_longest(trained, read, fillvalue="")) if pair[0] != pair[1]
            )
            return differs(
                StepWord.TEMPLATE,
                f"{case.name}: character {at} and on are {read[at : at + _BESIDE]!r} in the file and"
                f" {trained[at : at + _BESIDE]!r} in training",
            )
    return same(
        StepWord.TEMPLATE, f"{len(expected.cases)} prompts: {', '.join(case.name for case, _ in expected.cases)}"
    )


def check_tokenizer(
    tokenizer: Any, expected: Expected, prompts: Sequence[Mapping[str, Any]], text_ids: Sequence[Sequence[int]]
) -> OriginStep:
    """The ids of texts and prompts; each prompt as llama.cpp rendered it, so that a template's fault is none here."""
    count = 0
    for (case, rendering), prompt in zip(expected.cases, prompts, strict=True):
        if "error" in prompt:
            continue
        begin = tokenizer.bos_token or ""
        text, read = str(prompt["text"]), list(prompt["ids"])
        # the begin token that llama.cpp took off the rendering comes back as a token
        if begin and rendering.startswith(begin) and not text.startswith(begin):
            text = begin + text
        trained = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if trained != read:
            return differs(StepWord.TOKENIZER, f"{case.name}: {_ids_differ(tokenizer, trained, read)}")
        count += len(read)
    for text, ids in zip(expected.texts, text_ids, strict=True):
        trained = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        if trained != list(ids):
            return differs(StepWord.TOKENIZER, f"text: {_ids_differ(tokenizer, trained, list(ids))}")
        count += len(trained)
    return same(StepWord.TOKENIZER, f"{count} tokens of {len(expected.cases)} prompts and {len(expected.texts)} texts")


def _ids_differ(tokenizer: Any, trained: Sequence[int], read: Sequence[int]) -> str:
    begin = tokenizer.bos_token_id
    if begin is not None and list(read) == [begin, *trained]:
        return "the begin token is doubled" if trained[:1] == [begin] else "a begin token is put before it"
    if begin is not None and [begin, *read] == list(trained):
        return "the begin token is missing"
    at = next(place for place, pair in enumerate(zip_longest(trained, read)) if pair[0] != pair[1])
    shown = [", ".join(map(str, ids[at : at + 3])) or "none" for ids in (read, trained)]
    return (
        f"token {at} and on are {shown[0]} in llama.cpp and {shown[1]} in training,"
        f" at {tokenizer.decode(list(trained[at : at + 3]))!r}"
    )


def check_end_token(tokenizer: Any, metadata: Mapping[str, Any]) -> OriginStep:
    """The token after a trained answer against those at which llama.cpp stops.

    Args:
        tokenizer: The run's own.
        metadata: Values of the file's metadata.
    """
    step = StepWord.END_TOKEN
    names = list(metadata.get("tokenizer.ggml.tokens") or ())

    def named(token: int | None) -> str:
        return f"{token} ({names[token]})" if token is not None and 0 <= token < len(names) else str(token)

    declared = {key: metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS}
    own = tokenizer.eos_token_id
    if own is not None and declared["eos_token_id"] is not None and declared["eos_token_id"] != own:
        return differs(
            step, f"the file ends a text with {named(declared['eos_token_id'])}, the tokenizer with {named(own)}"
        )
    trained = _trained_end(tokenizer)
    if trained is None:
        return not_checked(step, "the template ends an answer with no token of its own")
    stops = {token for token in declared.values() if isinstance(token, int)}
    if trained in stops or (trained < len(names) and names[trained] in _ENDS_BY_NAME):
        return same(step, f"an answer ends with {named(trained)}, at which llama.cpp stops")
    return differs(
        step, f"a trained answer ends with {named(trained)}, the file stops at {', '.join(map(named, stops)) or 'none'}"
    )


def _trained_end(tokenizer: Any) -> int | None:
    """The first control token after an answer; None where the template has none there."""
    if not tokenizer.chat_template:
        return None
    text = Case("", [_ASK, _ANSWER], generation=False).rendered(tokenizer)
    if text is None or _ANSWER["content"] not in text:
        return None
    after = text[text.rindex(_ANSWER["content"]) + len(_ANSWER["content"]) :]
    ids = tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]
    controls = set(tokenizer.all_special_ids) | {
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    return next((int(token) for token in ids if token in controls), None)

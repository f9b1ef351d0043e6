"""Training and evaluation data as trainers keep it, read record by record.

Files: JSON Lines, a JSON list, or one JSON object that holds the list under ``data``, ``train``, ``test`` or
``conversations``. Shapes of a record, the first that fits decides:

========================= ==========================================================================
``messages``              list of ``{role, content}`` (OpenAI, TRL, LLaMA-Factory's OpenAI form)
``conversations``         list of ``{from, value}`` (ShareGPT) or ``{role, content}``
``prompt``, ``completion``  two texts, or two lists of messages (TRL); also ``chosen`` as the completion
``instruction``, ``output`` with optional ``input``, ``system``, ``history`` (Alpaca, LLaMA-Factory)
``text``                  plain text
========================= ==========================================================================

Nothing is executed and nothing is fetched; Parquet needs the ``pyarrow`` package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.digest import sha256_file

MAX_BYTES = 1 << 30
MAX_SAMPLES = 20_000
SHAPES = ("messages", "conversations", "prompt + completion", "instruction + output", "text")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
          "observation": "tool", "function_call": "assistant", "function": "tool"}  # fmt: skip
_HOLDERS = ("data", "train", "test", "validation", "conversations", "samples")

Message = dict[str, str]


@dataclass(frozen=True)
class Sample:
    """One record.

    Attributes:
        part: Its label among the figures: ``chat`` or ``text``.
        messages: The conversation; empty for plain text.
        text: Plain text.
    """

    part: str
    messages: Sequence[Message] = ()
    text: str = ""

    @property
    def said(self) -> str:
        """All that it says, without a template."""
        return self.text or "\n\n".join(message["content"] for message in self.messages)

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Token ids, special tokens of the chat template parsed; a plain text begins as the model wants it."""
        if self.messages and tokenizer.chat_template:
            rendered: str = tokenizer.apply_chat_template(list(self.messages), tokenize=False)
            ids: list[int] = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
            return ids
        begun: list[int] = tokenizer(self.said, verbose=False)["input_ids"]
        return begun


@dataclass(frozen=True)
class Samples:
    """What a file holds.

    Attributes:
        samples: In the file's order, at most :data:`MAX_SAMPLES`.
        sha256: Digest of the file.
        left_out: Records that are of none of the shapes, though others are.
        left_out_reason: Of the first of them.
    """

    samples: Sequence[Sample]
    sha256: str
    left_out: int
    left_out_reason: str | None


def read_samples(path: Path) -> Samples:
    """Read a data set.

    Raises:
        PackagingError: ``dataset_invalid`` for a file that cannot be read, is empty, or whose records are of no known
            shape; ``dependency_missing`` for Parquet without pyarrow.
    """
    samples: list[Sample] = []
    left_out, reason = 0, None
    for number, record in enumerate(_records(path), 1):
        sample = _sample(record)
        if sample is not None:
            samples.append(sample)
        else:
            left_out += 1
            reason = reason or f"record {number} has {_described(record)}"
        if len(samples) == MAX_SAMPLES:
            break
    if not samples:
        fact = f"its first record has {reason.partition(' has ')[2]}" if reason else "it holds no record"
        raise _invalid(path, f"no record of a known shape: {fact}; known are {', '.join(SHAPES)}")
    return Samples(samples, sha256_file(path), left_out, reason)


def _sample(record: Any) -> Sample | None:
    """A record as a sample; None where it has no known shape or says nothing."""
    if not isinstance(record, dict):
        return None
    for reader in (_from_messages, _from_pair, _from_instruction):
        messages = reader(record)
        if messages and any(message["role"] == "assistant" for message in messages):
            return Sample("chat", tuple(messages))
    text = record.get("text")
    return Sample("text", text=text) if isinstance(text, str) and text.strip() else None


def _from_messages(record: Mapping[str, Any]) -> list[Message] | None:
    listed = record.get("messages", record.get("conversations", record.get("conversation")))
    messages = _messages(listed)
    system = record.get("system")
    if messages and isinstance(system, str) and system and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def _messages(listed: Any) -> list[Message] | None:
    if not isinstance(listed, list):
        return None
    messages = []
    for item in listed:
        if not isinstance(item, dict):
            return None
        role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
        if isinstance(content, list):  # parts of a multimodal message: the text ones
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        messages.append({"role": _ROLES.get(role, role), "content": content})
    return messages


def _from_pair(record: Mapping[str, Any]) -> list[Message] | None:
    prompt, completion = record.get("prompt"), record.get("completion", record.get("chosen", record.get("response")))
    asked, answered = _messages(prompt), _messages(completion)
    if answered is not None and (asked is not None or prompt is None):
        return [*(asked or []), *answered]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return None


def _from_instruction(record: Mapping[str, Any]) -> list[Message] | None:
    instruction, output = record.get("instruction"), record.get("output")
    if not isinstance(instruction, str) or not isinstance(output, str):
        return None
    more = record.get("input")
    asked = f"{instruction}\n{more}" if isinstance(more, str) and more else instruction
    system = record.get("system")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    for turn in record.get("history") or ():
        if isinstance(turn, list | tuple) and len(turn) == 2:
            messages += [
                {"role": "user", "content": str(turn[0])},
                {"role": "assistant", "content": str(turn[1])},
            ]
    return [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": output}]


def _records(path: Path) -> Iterator[Any]:
    try:
        if not path.is_file():
            raise _invalid(path, "it is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise _invalid(path, f"it is larger than {MAX_BYTES >> 20} MiB")
        yield from _READERS.get(path.suffix.lower(), _json)(path)
    except OSError as error:
        raise _invalid(path, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _invalid(path, f"it is not UTF-8 at byte {error.start}") from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise _invalid(path, f"line {number} is no JSON: {error}") from error


def _json(path: Path) -> Iterator[Any]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "\n" in text.strip():
            yield from _lines(path)
            return
        raise _invalid(path, f"it is no JSON: {error}") from error
    if isinstance(data, dict):
        held = next((data[key] for key in _HOLDERS if isinstance(data.get(key), list)), None)
        data = [data] if held is None or _sample(data) is not None else held
    if not isinstance(data, list):
        raise _invalid(path, f"it holds {_described(data)}, not a list of records")
    yield from data


def _parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            f"{path.name} is Parquet, which needs the package pyarrow",
            remedy="Install pyarrow where the workers run, or give the data as JSON Lines.",
            fields={"package": "pyarrow"},
        ) from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (ValueError, NotImplementedError) as error:  # pyarrow's own errors derive from ValueError
        raise _invalid(path, f"it is no Parquet that can be read: {error}") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Any]]] = {".jsonl": _lines, ".ndjson": _lines, ".parquet": _parquet}


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"the keys {', '.join(str(key) for key in list(value)[:12])}"
    return f"a {type(value).__name__}"


def _invalid(path: Path, fact: str) -> PackagingError:
    return PackagingError(
        ErrorCode.DATASET_INVALID,
        f"data set {path.name}: {fact}",
        fields={"path": str(path)},
    )

"""What is run: the user's text, the run's own data, or the text shipped with the project; all of it as sequences.

``evaluation.txt`` was written for this project and shares no paragraph with the calibration text, so that a matrix
computed from the one is not judged by what it was fitted to. A line ``=== name`` begins a part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quality import TextSource
from worker.models.evaluate.datasets import read_samples
from worker.models.evaluate.sequences import TokenSequence, cut_text, spread

CONTEXT_TOKENS = 512
_MOST_LOST = 0.25
"""Share of a text's characters without a token above which it is left out."""
SHIPPED = "shipped"
SHIPPED_NAME = "trainpack-evaluation"
_PART = re.compile(r"^=== (?P<name>[\w -]+)$", re.MULTILINE)


@dataclass(frozen=True)
class EvaluationText:
    """Sequences, mixed so that any beginning of them has something of every part, and where they come from."""

    sequences: Sequence[TokenSequence]
    source: TextSource


def chosen_text(tokenizer: Any, text: Path | None, dataset: Path | None) -> EvaluationText:
    """The data set or the text that is given, else the shipped one.

    Raises:
        PackagingError: as :func:`text_file` and :func:`data_set`.
    """
    if dataset is not None:
        return data_set(dataset, tokenizer)
    return text_file(text, tokenizer) if text is not None else shipped_text(tokenizer)


def shipped_text(tokenizer: Any, context: int = CONTEXT_TOKENS) -> EvaluationText:
    """The text shipped with the project, in its parts."""
    return _from_text(_shipped(), tokenizer, context, TextSource(kind=SHIPPED, name=SHIPPED_NAME, sha256="", samples=0))


def shipped_parts() -> list[tuple[str, str]]:
    """Name and text of each part of the shipped text."""
    return _parts(_shipped())


def _shipped() -> str:
    return resources.files(__package__).joinpath("evaluation.txt").read_text(encoding="utf-8")


def text_file(path: Path, tokenizer: Any, context: int = CONTEXT_TOKENS) -> EvaluationText:
    """The user's text.

    Raises:
        PackagingError: ``request_invalid`` where the file cannot be read, ``calibration_too_short``,
            ``dataset_invalid`` where the tokenizer cannot hold it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        message = f"evaluation text {path} cannot be read: {error.strerror}"
        raise PackagingError(ErrorCode.REQUEST_INVALID, message) from error
    return _from_text(text, tokenizer, context, TextSource(kind="text", name=path.name, sha256="", samples=0))


def data_set(path: Path, tokenizer: Any, context: int = CONTEXT_TOKENS) -> EvaluationText:
    """Samples of a data set, each a sequence; chat samples through the tokenizer's own template.

    Of a sample longer than the context its beginning is run. A sample that the tokenizer cannot hold is left out.

    Raises:
        PackagingError: ``dataset_invalid`` for a file or shape that cannot be read, or where the tokenizer can hold no
            sample; ``calibration_too_short`` where none can be used for another reason.
    """
    samples = read_samples(path)
    sequences: list[TokenSequence] = []
    failed, reason, shortened = samples.left_out, samples.left_out_reason, 0
    unheld: str | None = None
    for sample in samples.samples:
        try:
            ids = sample.token_ids(tokenizer)
        except _TEMPLATE_ERRORS as error:
            failed, reason = failed + 1, reason or f"the chat template fails: {type(error).__name__}: {error}"
            continue
        unknown = _unknown(tokenizer, sample.said)
        if unknown is not None:
            failed, reason, unheld = failed + 1, reason or unknown, unknown
        elif len(ids) > 1:
            shortened += len(ids) > context
            sequences.append(TokenSequence(sample.part, tuple(ids[:context]), 1))
    if not sequences and unheld is not None:
        raise _cannot_be_held(path.name, unheld)
    if not sequences:
        raise PackagingError(
            ErrorCode.CALIBRATION_TOO_SHORT,
            f"{path.name}: no sample can be run" + (f"; {reason}" if reason else ""),
            fields={"path": str(path), "samples": len(samples.samples), "left_out": failed},
        )
    source = TextSource(
        kind="dataset", name=path.name, sha256=samples.sha256, samples=len(sequences), left_out=failed,
        left_out_reason=reason, shortened=shortened,
    )  # fmt: skip
    return EvaluationText(sequences, source)


_TEMPLATE_ERRORS = (TemplateError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)
"""What rendering a sample raises: jinja's own, where the template refuses it, and what its code runs into."""


def _from_text(text: str, tokenizer: Any, context: int, source: TextSource) -> EvaluationText:
    begin = begin_token(tokenizer)
    parts = _parts(text)
    reasons = {part: reason for part, content in parts if (reason := _unknown(tokenizer, content)) is not None}
    if len(reasons) == len(parts):
        raise _cannot_be_held(source.name, next(iter(reasons.values())))
    if reasons:
        first = next(iter(reasons))
        source = source.model_copy(
            update={"left_out": len(reasons), "left_out_reason": f"part {first}: {reasons[first]}"}
        )
    sequences = [
        sequence
        for part, content in parts
        if part not in reasons
        for sequence in cut_text(part, plain_ids(tokenizer, content), begin, context, tail=source.kind == SHIPPED)
    ]
    if not sequences:
        count = sum(len(plain_ids(tokenizer, content)) for _, content in _parts(text))
        raise PackagingError(
            ErrorCode.CALIBRATION_TOO_SHORT,
            f"the evaluation text has {count} tokens, one chunk needs {context}",
            fields={"tokens_found": count, "tokens_needed": context},
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return EvaluationText(spread(sequences), source.model_copy(update={"sha256": digest, "samples": len(sequences)}))


def _unknown(tokenizer: Any, text: str) -> str | None:
    """Why a text says nothing of a model: its tokenizer cannot hold it. ``None`` where it can.

    Some tokenizers write an unknown token for what they do not know, others nothing.
    """
    ids = plain_ids(tokenizer, text)
    held = tokenizer.decode([token for token in ids if token != tokenizer.unk_token_id])
    whole, kept = (len("".join(part.split())) for part in (text, held))
    lost = 1 - kept / whole if whole else 0.0
    return f"the tokenizer cannot hold it: {100 * lost:.0f} % of its characters are lost" if lost > _MOST_LOST else None


def _cannot_be_held(name: str, reason: str) -> PackagingError:
    return PackagingError(
        ErrorCode.DATASET_INVALID,
        f"{name}: {reason}",
        remedy="Give text in a language that the model's tokenizer knows.",
        fields={"name": name},
    )


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text in which nothing is a special token, whatever it looks like."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def begin_token(tokenizer: Any) -> int | None:
    """The begin-of-text token, where the tokenizer adds one by itself."""
    begin: int | None = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else None


def _parts(text: str) -> list[tuple[str, str]]:
    """Parts of a text by their headings; the whole of one that has none."""
    headings = list(_PART.finditer(text))
    if not headings:
        return [("text", text)]
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    return [
        (heading["name"].strip(), text[heading.end() + 1 : end]) for heading, end in zip(headings, ends, strict=True)
    ]

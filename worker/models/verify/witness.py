"""Hold a file that embeds or ranks to the trained model: both are asked about the same texts, and the answers compared.

The trained model is asked once for all files of a job, when the first of them has answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.metadata import get_value
from worker.models.gguf.reader import open_gguf
from worker.models.verify.ask import Question
from worker.models.verify.likeness import (
    CLOSE_SCORES,
    FINE_TYPES,
    LEAST_COSINE,
    PAIRS,
    Likeness,
    compare_scores,
    compare_vectors,
)
from worker.models.verify.load import vectors_of
from worker.models.verify.purpose import Pooling, Purpose, pooling_of, purpose_of

if TYPE_CHECKING:
    from worker.models.convert.sentence_modules import SentenceModules
    from worker.models.verify.reference import PairScores, TrainedModel

_QUERY, _DOCUMENTS = PAIRS[0][0], tuple(text for _, text in PAIRS)
_CONTEXT_TOKENS = 1024
_APART = frozenset({"t5encoder"})
"""Architectures whose attention llama.cpp is known to compute otherwise (xllamacpp 2026.10, in float32 and without any
bias, too). Programs that draw pictures read such files and run them by themselves, so they are told and not refused."""
_QUERIES, _TEXTS = ("query", "search_query", "queries"), ("document", "passage", "search_document", "corpus")
"""Names under which trainers put the prompts of the two sides."""


@dataclass(frozen=True)
class Proof:
    """What a file did.

    Attributes:
        did: The end of a sentence that begins with its name.
        likeness: How its answers compare with the trained model's; None where that could not be asked.
        warns: Whether whoever uses the file must know.
        prompts: What the model was trained to have before its texts, by name.
    """

    did: str
    likeness: Likeness | None = None
    warns: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)


class Witness:
    """The trained model of a job.

    Args:
        trained: Opens it; called once, when it is first needed.
    """

    def __init__(self, trained: Callable[[], TrainedModel]) -> None:
        self._open = trained
        self._vectors = cache(self._reference_vectors)
        self._scores = cache(self._reference_scores)

    @cached_property
    def _trained(self) -> TrainedModel:
        return self._open()

    def prove(self, question: Question) -> Proof:
        """Have a file embed or rank, and compare.

        Raises:
            PackagingError: ``output_does_not_load`` where it does not, and where a file of a fine type answers
                otherwise than the trained model beyond the bounds of ``likeness``.
            StopRequested: as asked of the setting.
        """
        from worker.models.verify.reference import NoReferenceError

        path = Path(question.model)
        ranks = purpose_of(path) is Purpose.RANK
        asked = replace(question, context_tokens=_CONTEXT_TOKENS)
        try:
            return self._rank(asked, path) if ranks else self._embed(asked, path)
        except NoReferenceError as error:
            did = "ranks" if ranks else "embeds texts"
            return Proof(f"{did}; it is not compared with the trained model: {error}", warns=True)

    def _embed(self, question: Question, path: Path) -> Proof:
        texts = prompted(self._trained.modules)
        vectors, ids = vectors_of(replace(question, prompt=texts[0], others=texts[1:], purpose=Purpose.EMBED))
        pooling = self._trained.modules.pooling or pooling_of(path) or Pooling.MEAN.value
        try:
            likeness = compare_vectors(self._vectors(pooling), vectors)
        except ValueError as error:
            raise _apart(path, f"it gives {error}") from error
        fact = f"cosine {likeness.least:.4f} or more with the trained model's"
        if likeness.least < LEAST_COSINE and (other := self._cut_otherwise(texts, ids)) and _is_fine(path):
            raise _apart(path, f"it cuts {other!r} into other tokens than the tokenizer does")
        _hold(path, likeness, LEAST_COSINE, f"vectors have a {fact}", "pairs of texts")
        did = f"embeds texts as vectors of {len(vectors[0])} numbers, {fact}"
        told = did + _order(likeness, "pairs of texts")
        return Proof(told, likeness, not likeness.in_order, self._trained.modules.prompts)

    def _rank(self, question: Question, path: Path) -> Proof:
        vectors, _ = vectors_of(replace(question, prompt=_QUERY, others=_DOCUMENTS, purpose=Purpose.RANK))
        read = [vector[0] for vector in vectors]
        expected = self._scores(_rank_template(path))
        likeness = compare_scores(expected.in_one_segment, read)
        fact = f"scores within {1 - likeness.least:.2g} of the trained model's"
        _hold(path, likeness, 1 - CLOSE_SCORES, fact, "documents")
        trained = compare_scores(expected.trained, read)
        if _is_fine(path) and not trained.in_order:
            raise _apart(
                path, "llama.cpp puts both texts of a pair in the first segment, and so orders documents otherwise"
            )
        shifted = expected.trained != expected.in_one_segment and trained.least < 1 - CLOSE_SCORES
        did = f"ranks, {fact}{_order(likeness, 'documents')}"
        if shifted:
            did += "; llama.cpp puts both texts of a pair in the first segment, which moves scores by up to "
            did += f"{1 - trained.least:.2g}"
        return Proof(did, likeness, shifted or not likeness.in_order)

    def _cut_otherwise(self, texts: tuple[str, ...], ids: Sequence[Sequence[int]]) -> str | None:
        """The first text that llama.cpp cuts into other tokens."""
        trained = self._trained.cut(texts)
        return next((text for text, ours, theirs in zip(texts, trained, ids, strict=True) if ours != theirs), None)

    def _reference_vectors(self, pooling: str) -> list[list[float]]:
        return self._trained.vectors(prompted(self._trained.modules), pooling)

    def _reference_scores(self, template: str | None) -> PairScores:
        return self._trained.scores(_QUERY, _DOCUMENTS, template)


def prompted(modules: SentenceModules) -> tuple[str, ...]:
    """The texts of :data:`~worker.models.verify.likeness.PAIRS`, in turns, each with the prompt of its side."""
    sides = [_prompt(modules, names) for names in (_QUERIES, _TEXTS)]
    return tuple(prompt + text for pair in PAIRS for prompt, text in zip(sides, pair, strict=True))


def _prompt(modules: SentenceModules, names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in modules.prompts), modules.default_prompt)
    return modules.prompts.get(name, "") if name is not None else ""


def _rank_template(path: Path) -> str | None:
    with open_gguf(path) as file:
        template = get_value(file.metadata, "tokenizer.chat_template.rerank")
    return template if isinstance(template, str) else None


def _is_fine(path: Path) -> bool:
    """Whether a file is held to the bounds."""
    with open_gguf(path) as file:
        known_apart = get_value(file.metadata, "general.architecture") in _APART
        return not known_apart and all(tensor.type.name in FINE_TYPES for tensor in file.tensors)


def _hold(path: Path, likeness: Likeness, bound: float, fact: str, ordered: str) -> None:
    if not _is_fine(path):
        return
    if likeness.least < bound:
        raise _apart(path, f"its {fact}, {bound:g} is the least")
    if not likeness.in_order:
        raise _apart(path, f"it orders {ordered} otherwise than the trained model")


def _order(likeness: Likeness, ordered: str) -> str:
    return f"; {ordered} in its order" if likeness.in_order else f"; {ordered} in another order"


def _apart(path: Path, reason: str) -> PackagingError:
    return PackagingError(
        ErrorCode.OUTPUT_DOES_NOT_LOAD,
        f"{path.name} answers otherwise in llama.cpp than the trained model does: {reason}",
        remedy="llama.cpp computes this model otherwise than transformers. To publish the file all the same, set "
        "TRAINPACK_VERIFY_LOAD=false on the worker.",
        fields={"file": path.name, "reason": reason},
    )

"""Tied embeddings: when training pulled the embedding and the head apart, both are written.

A tied base stores one tensor for both. PEFT trains copies: ``modules_to_save`` replaces one of the two modules and its
merge leaves the model untied; LoRA on one of the two is added by its merge to the shared tensor, so that the other one
changes as well although it was not trained. What the trained model computes is the right answer in both cases: each
module keeps its own weights. Only where the adapter says that both were trained as one (``ensure_weight_tying``, token
rows, two equal replacements) do they stay one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from worker.models.adapters.names import config_keys, head_name, is_head, text_embedding
from worker.models.adapters.overlay import Step
from worker.models.adapters.replacements import same_values
from worker.models.adapters.updates import CopyUpdate, ReplaceUpdate
from worker.models.checkpoint.base_model import BaseModel


@dataclass(frozen=True, slots=True)
class Tying:
    """A base whose embedding is its head.

    Attributes:
        embedding: Tensor name of the embedding.
        head: Tensor name of the head: the base's own, or the one it gets when it is untied.
        stored: The files hold the head as well, with the embedding's values (some Qwen3 models do).
    """

    embedding: str
    head: str
    stored: bool


def read_tying(base: BaseModel) -> Tying | None:
    """How the base is tied; None where embedding and head are two tensors of their own."""
    embedding = text_embedding(base)
    heads = [name for name in base.tensors if is_head(name)]
    if embedding is None or len(heads) > 1:
        return None
    if not heads:
        return Tying(embedding, head_name(embedding), stored=False)
    first, second = base.tensors[embedding], base.tensors[heads[0]]
    if not _says_tied(base) or (first.shape, first.dtype) != (second.shape, second.dtype):
        return None
    same = same_values(base.read_tensor(embedding), base.read_tensor(heads[0]))
    return Tying(embedding, heads[0], stored=True) if same else None


def settle_tying(
    steps: Sequence[Step], base: BaseModel, tying: Tying | None, one_adapter_for_both: bool
) -> tuple[list[Step], dict[str, Any], list[str]]:
    """Decide whether a tied base stays tied.

    Args:
        steps: All steps.
        base: The base model.
        tying: What :func:`read_tying` said.
        one_adapter_for_both: The adapter's ``ensure_weight_tying``.

    Returns:
        The steps (with one for the half that was not trained, where it needs one), changes of the config, notes.
    """
    if tying is None:
        touched = any(is_head(step.target) or step.target == text_embedding(base) for step in steps)
        return list(steps), _untied(base) if touched and _says_tied(base) else {}, []
    rows_of_both = any(step.target == tying.embedding and step.kind == "rows" for step in steps)
    # PEFT trains token rows of a tied embedding for both halves
    apart = [step for step in steps if not (rows_of_both and step.kind == "rows")]
    on_head = [step for step in apart if step.target == tying.head]
    on_embedding = [step for step in apart if step.target == tying.embedding]
    grown = not on_head and _grows(on_embedding, base, tying.embedding)
    as_one = one_adapter_for_both or grown or _equal_replacements(on_embedding, on_head)
    if (as_one and on_embedding) or not (on_head or on_embedding):
        notes = [f"{tying.embedding}: new rows serve as rows of the tied head as well"] if grown else []
        return _kept_tied(steps, tying), {}, notes
    kept = list(steps)
    if not on_head and not tying.stored:
        kept.append(Step(tying.head, tying.embedding, CopyUpdate(), "copy"))
    trained = "embedding and head" if on_head and on_embedding else "head" if on_head else "embedding"
    note = f"untied: the adapter trained the {trained}, so {tying.head} is written beside {tying.embedding}"
    return kept, _untied(base), [note]


def _kept_tied(steps: Sequence[Step], tying: Tying) -> list[Step]:
    """Steps of the embedding alone, and the same for a head that the files hold as well."""
    kept = [step for step in steps if step.target != tying.head]
    if tying.stored:
        mirrored = [step for step in kept if step.target == tying.embedding]
        kept.extend(replace(step, target=tying.head, source=tying.head) for step in mirrored)
    return kept


def _equal_replacements(on_embedding: Sequence[Step], on_head: Sequence[Step]) -> bool:
    pair = [step.update for step in (*on_embedding, *on_head)]
    if len(on_embedding) != 1 or len(on_head) != 1 or not all(isinstance(update, ReplaceUpdate) for update in pair):
        return False
    import torch

    first, second = (update.value for update in pair if isinstance(update, ReplaceUpdate))
    return first.shape == second.shape and torch.equal(first, second)


def _grows(steps: Sequence[Step], base: BaseModel, embedding: str) -> bool:
    rows = base.tensors[embedding].shape[0]
    return any(isinstance(step.update, ReplaceUpdate) and step.update.value.shape[0] > rows for step in steps)


def _says_tied(base: BaseModel) -> bool:
    return bool(base.config.get("tie_word_embeddings", base.text_config.get("tie_word_embeddings", False)))


def _untied(base: BaseModel) -> dict[str, Any]:
    return dict.fromkeys(config_keys(base, "tie_word_embeddings"), False)

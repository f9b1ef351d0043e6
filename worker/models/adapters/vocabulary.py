"""A vocabulary resized in training: the adapter's rows win, and embedding, head and config agree on their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.names import config_keys, is_head, text_embedding
from worker.models.adapters.overlay import Step
from worker.models.adapters.updates import TruncateUpdate
from worker.models.checkpoint.base_model import BaseModel


def settle_vocabulary(steps: Sequence[Step], base: BaseModel) -> tuple[list[Step], dict[str, Any], list[str]]:
    """Give the half that training left alone the rows of the half that it resized.

    Args:
        steps: All steps, tying settled.
        base: The base model.

    Returns:
        The steps, changes of the config, notes.

    Raises:
        PackagingError: ``adapter_mismatch`` where rows are missing: one half grew, and nothing says what the new rows
            of the other half are.
    """
    embedding = text_embedding(base)
    if embedding is None:
        return list(steps), {}, []
    halves = {embedding: embedding}
    halves.update((name, name) for name in base.tensors if is_head(name))
    halves.update((step.target, step.source) for step in steps if is_head(step.target))
    rows = {target: _rows(target, source, steps, base) for target, source in halves.items()}
    resized = [count for target, count in rows.items() if count != base.tensors[halves[target]].shape[0]]
    if not resized:
        return list(steps), {}, []  # the base's own halves may differ: a head may have no rows for picture tokens
    wanted = resized[0]
    added: list[Step] = []
    for target, count in rows.items():
        if count < wanted:
            raise PackagingError(
                ErrorCode.ADAPTER_MISMATCH,
                f"the adapter brings a vocabulary of {wanted} rows, but {target} has only {count}",
                remedy="Save the adapter with `save_embedding_layers=True`, or resize the base model first.",
                fields={"rows": wanted, "tensor": target, "tensor_rows": count},
            )
        if count > wanted:
            added.append(Step(target, halves[target], TruncateUpdate(wanted), "truncate"))
    notes = [f"{step.target}: cut to the adapter's vocabulary of {wanted} rows" for step in added]
    return [*steps, *added], dict.fromkeys(config_keys(base, "vocab_size"), wanted), notes


def _rows(target: str, source: str, steps: Sequence[Step], base: BaseModel) -> int:
    shape = base.tensors[source].shape
    for step in steps:
        if step.target == target:
            shape = step.shape_after(shape)
    return shape[0]

"""Adapter tensors that take the place of base values: whole tensors, and single token rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.draft import Draft
from worker.models.adapters.keys import AdapterKey
from worker.models.adapters.updates import ReplaceUpdate, RowsUpdate

if TYPE_CHECKING:
    import torch

# computed when a model is built; whole state dicts hold them as well
_BUFFERS = ("rotary_emb.inv_freq", "position_ids")
_ROWS = 1024  # compared at a time, to bound the widened copies


def plan_replacement(draft: Draft, name: str, key: AdapterKey) -> None:
    """A trained tensor: ``modules_to_save``, a bias, or an embedding saved because its vocabulary was resized.

    Raises:
        PackagingError: ``adapter_mismatch``, ``adapter_not_finite``.
    """
    places = draft.locator.places(name)
    if not places:
        if not name.endswith(_BUFFERS):
            draft.miss(key)
        return
    value = draft.read(key)
    for place in places:
        part = place.part_of(value).contiguous()
        have, want = tuple(part.shape), draft.current_shape(place)
        resized = draft.is_vocabulary(place) and len(have) == len(want) == 2 and have[1] == want[1]
        if have != want and not resized:
            draft.refuse_shape(key, have, place)
        if not (have == want and place.whole and same_values(part, draft.base.read_tensor(place.source))):
            draft.add(place, "replace", ReplaceUpdate(part))
            if draft.adapter.is_beside(key):
                draft.beside[place.target] = key


def same_values(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one shape are equal: PEFT saves an adapted embedding's base weights, trained or not."""
    import torch

    if first.ndim == 0:
        return torch.equal(first, second)
    return all(
        torch.equal(first[start : start + _ROWS].double(), second[start : start + _ROWS].double())
        for start in range(0, first.shape[0], _ROWS)
    )


def plan_token_rows(draft: Draft, token_ids: Mapping[str, list[int]], path: str, key: AdapterKey) -> None:
    """Trained rows of an embedding.

    Args:
        draft: Receives the step.
        token_ids: The rows' token ids, by ending of the embedding's path.
        path: Path of the embedding.
        key: The tensor with the rows.

    Raises:
        PackagingError: ``adapter_mismatch``, ``adapter_not_finite``, ``adapter_invalid`` without the token ids.
    """
    import torch

    places = draft.locator.places(f"{path}.weight")
    if not places:
        draft.miss(key)
        return
    indices = _indices(draft, token_ids, path)
    have = draft.shape(key)
    for place in places:
        want = draft.current_shape(place)
        if have != (len(indices), *want[1:]):
            draft.refuse_shape(key, have, place)
        if max(indices, default=0) >= want[0]:
            message = f"trains token {max(indices)}, but {place.source} of the base has {want[0]} rows"
            raise PackagingError(
                ErrorCode.ADAPTER_MISMATCH,
                f"{draft.adapter.directory} {message}",
                remedy="Use the base model whose embeddings were resized before training.",
                fields={"token": max(indices), "rows": want[0]},
            )
        draft.add(place, "rows", RowsUpdate(draft.read(key), torch.tensor(indices, dtype=torch.int64)))


def _indices(draft: Draft, token_ids: Mapping[str, list[int]], path: str) -> list[int]:
    for name, indices in token_ids.items():
        if name in ("", path) or path.endswith(f".{name}"):
            return indices
    message = f"{draft.adapter.directory}: trained tokens of {path} without trainable_token_indices for it"
    raise PackagingError(ErrorCode.ADAPTER_INVALID, message)

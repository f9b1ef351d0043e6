"""A low-rank stand-in answers like the weight it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worker.models.convert.lowrank import LowRank


def pair(*shape: int, rank: int = 3, seed: int = 0) -> LowRank:
    """Random factors of a (..., o, i) weight."""
    generator = torch.Generator().manual_seed(seed)
    *leading, rows, columns = shape
    a = torch.randint(-3, 4, (*leading, rank, columns), generator=generator).float()
    b = torch.randint(-3, 4, (*leading, rows, rank), generator=generator).float()
    return LowRank(a, b)


def dense(update: LowRank, rank: int = 3) -> torch.Tensor:
    """What llama.cpp makes of it: a strength of one at the rank of the pair it came from."""
    return (update.full_a().transpose(-1, -2).unsqueeze(-3) * update.b.unsqueeze(-2)).sum(-1) * (rank / update.rank)


# A LowRank stands in for the tensor that torch's functions are typed for.
TWO: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda w: w.contiguous(),
    "float": lambda w: w.float(),
    "reshape": lambda w: w.reshape(4, 2, 8),
    "reshape with a guess": lambda w: w.reshape(2, -1, 8),
    "view of a tuple": lambda w: w.view((2, 4, 8)),
    "rope permutation": lambda w: w.reshape(2, 2, 2, 8).swapaxes(1, 2).reshape(w.shape),
    "transpose": lambda w: w.transpose(0, 1),
    "T": lambda w: w.T,
    "t": lambda w: w.t(),
    "permute": lambda w: w.reshape(4, 2, 8).permute(1, 0, 2).reshape(8, 8),
    "permute of a tuple": lambda w: w.permute((1, 0)),
    "torch.permute": lambda w: torch.permute(w, (1, 0)),
    "torch.reshape": lambda w: torch.reshape(w, (2, 4, 8)),
    "rows": lambda w: w[2:5],
    "every other row": lambda w: w[::2],
    "columns": lambda w: w[:, 3:6],
    "ellipsis": lambda w: w[..., 1:3],
    "rows by index": lambda w: w[torch.tensor([3, 1, 2])],
    "head of heads": lambda w: w.reshape(4, 2, 8)[1],
    "split": lambda w: w.split([3, 5], dim=0)[1],
    "split evenly": lambda w: w.split(3)[2],
    "split of columns": lambda w: w.split([2, 6], dim=-1)[0],
    "torch.split": lambda w: torch.split(w, [2, 6], dim=0)[1],
    "chunk": lambda w: w.chunk(2, dim=0)[1],
    "torch.chunk": lambda w: torch.chunk(w, 2, dim=1)[0],
    "unsqueeze": lambda w: w.unsqueeze(0),
    "squeeze": lambda w: w.unsqueeze(0).squeeze(0),
    "squeeze all": lambda w: w.unsqueeze(0).squeeze(),
    "flatten": lambda w: w.reshape(2, 4, 8).flatten(0, 1),
    "scale": lambda w: w * 2,
    "scale from the left": lambda w: 2 * w,
    "divide": lambda w: w / 4,
    "scale rows": lambda w: w * torch.arange(8.0).reshape(8, 1),
    "scale columns": lambda w: w * torch.arange(8.0),
    "join parts of one": lambda w: torch.cat([w[4:], w[:4]], dim=0),
    "columns in another order": lambda w: w.reshape(8, 2, 2, 2).permute(0, 2, 1, 3).contiguous().reshape(8, 8),
    "columns in another order, by torch": lambda w: torch.reshape(
        torch.permute(torch.reshape(w, (8, 2, 2, 2)), (0, 2, 1, 3)), (8, 8)
    ),
    "columns cut twice": lambda w: w.view(8, 2, 4).view(8, 4, 2).swapaxes(1, 2).reshape(8, -1),
    "columns cut, parted and joined": lambda w: torch.cat(
        [part.contiguous().view(8, -1) for part in torch.split(w.permute(1, 0).view(-1, 2, 4), [1, 3], dim=-1)], dim=-1
    ).permute(1, 0),
    "stack": lambda w: torch.stack([w, w * 2, w[torch.arange(7, -1, -1)]]),
}


@pytest.mark.parametrize("name", TWO)
def test_matrix(name: str) -> None:
    update = pair(8, 8)
    result = TWO[name](update)
    expected = TWO[name](dense(update))
    assert result.shape == expected.shape
    assert torch.equal(dense(result), expected)


EXPERTS: dict[str, Callable[[Any], Any]] = {
    "one expert": lambda w: w[1],
    "some experts": lambda w: w[1:3],
    "rows of all": lambda w: w[:, 2:4],
    "columns of all": lambda w: w[:, :, 1:],
    "swapped": lambda w: w.transpose(1, 2),
    "swapped by numbers": lambda w: w.permute(0, 2, 1),
    "cut into halves": lambda w: w.chunk(2, dim=1)[1],
    "experts split": lambda w: w.split([1, 3], dim=0)[1],
    "experts joined": lambda w: torch.cat([w, w[:2]], dim=0),
    "reshaped inside": lambda w: w.reshape(4, 2, 3, 5),
    "columns of all in another order": lambda w: w[..., :4].reshape(4, 6, 2, 2).permute(0, 1, 3, 2).reshape(4, 6, 4),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts(name: str) -> None:
    update = pair(4, 6, 5)
    result = EXPERTS[name](update)
    expected = EXPERTS[name](dense(update))
    assert result.shape == expected.shape
    assert torch.equal(dense(result), expected)


def as_tensors(*updates: LowRank) -> Any:
    """As torch's functions are typed to take them."""
    return list(updates)


def test_joining_updates_of_their_own_keeps_what_each_is_worth() -> None:
    """Rank grows from 3 and 2 to 5; the strength alpha / rank must not shrink either part."""
    first, second = pair(4, 6, rank=3, seed=1), pair(2, 6, rank=2, seed=2)
    rows: Any = torch.cat(as_tensors(first, second), dim=0)
    assert (rows.rank, rows.shape) == (5, (6, 6))
    expected = torch.cat([first.b @ first.a / 3, second.b @ second.a / 2])
    assert torch.allclose((rows.b @ rows.a) / rows.rank, expected, atol=1e-6)


def test_stacking_updates_of_different_rank_keeps_what_each_is_worth() -> None:
    first, second = pair(4, 6, rank=1, seed=1), pair(4, 6, rank=4, seed=2)
    stack: Any = torch.stack(as_tensors(first, second))
    assert (stack.rank, stack.shape) == (4, (2, 4, 6))
    strength = (stack.b @ stack.a) / stack.rank
    assert torch.equal(strength, torch.stack([first.b @ first.a / 1, second.b @ second.a / 4]))


def test_joining_along_columns() -> None:
    first, second = pair(4, 6, seed=1), pair(4, 2, seed=2)
    columns: Any = torch.cat(as_tensors(first, second), dim=-1)
    strength = (columns.b @ columns.a) / columns.rank
    assert torch.allclose(strength, torch.cat([first.b @ first.a, second.b @ second.a], dim=-1) / 3, atol=1e-6)


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w.reshape(-1),
        lambda w: w.reshape(16, 4),
        lambda w: w[0],
        lambda w: w[:, 1],
        lambda w: w[None],
        lambda w: w + 1,
        torch.exp,
        lambda w: w * torch.ones(8, 8),
        lambda w: w.unsqueeze(-1),
        lambda w: torch.stack([w, w], dim=1),
        lambda w: w.reshape(4, 2, 8).permute(2, 0, 1),
        lambda w: w.reshape(8, 2, 4).permute(1, 0, 2),
        lambda w: w.reshape(8, 2, 4).reshape(16, 4),
        lambda w: w.reshape(8, 2, 4).split(4, dim=0),
        lambda w: torch.exp(w.reshape(8, 2, 4)),
    ],
)
def test_what_is_no_movement_of_rows_or_columns_is_refused(operation: Callable[..., Any]) -> None:
    with pytest.raises((NotImplementedError, TypeError)):
        operation(pair(8, 8))


def test_factors_must_make_a_product() -> None:
    with pytest.raises(ValueError, match="product"):
        LowRank(torch.zeros(3, 4), torch.zeros(5, 2))


def test_rows_scaled_in_place_are_those_of_the_product_and_the_adapter_stays() -> None:
    a, b = torch.randn(2, 5), torch.randn(6, 2)
    update, before = LowRank(a, b), b.clone()
    update[1:3, :] *= 3.0
    update[4:] *= 0.5
    product = before @ a
    product[1:3, :] *= 3.0
    product[4:] *= 0.5
    assert torch.allclose(update.b @ update.a, product)
    assert torch.equal(b, before)


def test_rows_of_another_update_are_not_put_in() -> None:
    update = LowRank(torch.randn(2, 5), torch.randn(6, 2))
    with pytest.raises(NotImplementedError):
        update[1:3] = LowRank(torch.randn(2, 5), torch.randn(2, 2))

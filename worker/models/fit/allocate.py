"""Which type every tensor gets: the least predicted KLD within a limit of bytes, or the fewest bytes within one of KLD.

Bytes are those of the file: a tensor counts with its padding (``mixture.plan``), or without where a limit is of bits
per weight. Tensors that share a type (:mod:`worker.models.fit.groups`) are chosen for at once, and a type whose blocks
do not divide a tensor's rows stands for the one that llama-quantize falls back to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from worker.models.fit.groups import together
from worker.models.fit.knapsack import Option, choose
from worker.models.fit.prices import Prices, TensorPrice
from worker.models.gguf.tensors import align_up
from worker.models.gguf.types import GGMLType, tensor_bytes
from worker.models.mixture.policy import fitting_type


@dataclass(frozen=True)
class Allocation:
    """A mixture of the priced tensors.

    Attributes:
        types: By tensor name, in the order of the price list.
        size_bytes: Bytes of these tensors.
        kld: Predicted mean KLD, in nats.
        is_optimal: Whether no mixture of the allowed types is better.
    """

    types: Mapping[str, str]
    size_bytes: int
    kld: float
    is_optimal: bool = True


@dataclass(frozen=True)
class Market:
    """What an allocation chooses from.

    Attributes:
        prices: Every tensor that is chosen for, and no other.
        allowed: ggml type names, those of fewer bits first.
        alignment: Tensors are padded to a multiple of so many bytes; 1 counts their data alone.
    """

    prices: Prices
    allowed: tuple[str, ...]
    alignment: int = 32

    def bytes_of(self, tensor: TensorPrice, kind: str) -> int:
        """What a tensor takes of the file."""
        return align_up(tensor.bytes_of[kind], self.alignment)

    @cached_property
    def groups(self) -> list[tuple[int, ...]]:
        """Places of the tensors that stay together."""
        return together(tensor.name for tensor in self.prices.tensors)

    @cached_property
    def bundles(self) -> list[list[_Bundle]]:
        """What each group may be, the first of equal ones."""
        return [list(self._bundles(group)) for group in self.groups]

    def _bundles(self, group: tuple[int, ...]) -> Iterator[_Bundle]:
        tensors = [self.prices.tensors[place] for place in group]
        seen: set[tuple[str, ...]] = set()
        for kind in self.allowed:
            types = tuple(type_in(kind, tensor) for tensor in tensors)
            if types in seen:
                continue
            seen.add(types)
            both = [*zip(tensors, types, strict=True)]
            yield _Bundle(
                sum(self.bytes_of(tensor, tensor_type) for tensor, tensor_type in both),
                sum(tensor.kld_of[tensor_type] for tensor, tensor_type in both),
                types,
            )

    def taken(self, picks: Sequence[int], *, optimal: bool) -> Allocation:
        """The mixture of one bundle for each group."""
        chosen = [bundles[pick] for bundles, pick in zip(self.bundles, picks, strict=True)]
        by_place = {
            place: kind
            for group, bundle in zip(self.groups, chosen, strict=True)
            for place, kind in zip(group, bundle.types, strict=True)
        }
        return self.priced(
            {tensor.name: by_place[place] for place, tensor in enumerate(self.prices.tensors)}, optimal=optimal
        )

    def priced(self, types: Mapping[str, str], *, optimal: bool = False) -> Allocation:
        """What a mixture comes to, whoever chose it.

        Raises:
            KeyError: a type that a tensor has no price for.
        """
        both = [(tensor, types[tensor.name]) for tensor in self.prices.tensors]
        return Allocation(
            {tensor.name: kind for tensor, kind in both},
            sum(self.bytes_of(tensor, kind) for tensor, kind in both),
            sum(tensor.kld_of[kind] for tensor, kind in both),
            optimal,
        )


class _Bundle(NamedTuple):
    """The types of one group's tensors, and what they come to."""

    size_bytes: int
    kld: float
    types: tuple[str, ...]


def allocate(market: Market, limit_bytes: int) -> Allocation | None:
    """The mixture of least predicted KLD.

    Args:
        market: What may be chosen.
        limit_bytes: Most bytes that these tensors may take.

    Returns:
        The mixture; None where none is as small.
    """
    groups = [[Option(bundle.size_bytes, bundle.kld) for bundle in bundles] for bundles in market.bundles]
    chosen = choose(groups, limit_bytes)
    return None if chosen is None else market.taken(chosen.picks, optimal=chosen.is_optimal)


def allocate_to_kld(market: Market, limit_kld: float) -> Allocation | None:
    """The smallest mixture whose predicted KLD is no more than ``limit_kld`` nats; None where none is as good."""
    groups = [[Option(bundle.kld, bundle.size_bytes) for bundle in bundles] for bundles in market.bundles]
    chosen = choose(groups, limit_kld)
    return None if chosen is None else market.taken(chosen.picks, optimal=chosen.is_optimal)


def curve(market: Market, points: int = 24) -> tuple[Allocation, ...]:
    """Mixtures from the smallest to the largest, at even steps of bytes; each is the best of its size."""
    least = sum(min(bundle.size_bytes for bundle in bundles) for bundles in market.bundles)
    most = sum(max(bundle.size_bytes for bundle in bundles) for bundles in market.bundles)
    by_size: dict[int, Allocation] = {}
    for step in range(points):
        allocation = allocate(market, least + (most - least) * step // max(1, points - 1))
        if allocation is not None:
            by_size.setdefault(allocation.size_bytes, allocation)
    return tuple(by_size.values())


def type_in(kind: str, tensor: TensorPrice) -> str:
    """The type that a tensor gets where ``kind`` is asked for, of those that have a price; the nearest larger one else.

    Raises:
        ValueError: the tensor has no price at all.
    """
    wanted = fitting_type(GGMLType[kind], tensor.shape[0])
    if wanted.name in tensor.kld_of:
        return wanted.name
    size = tensor_bytes(wanted, tensor.shape)
    others = sorted((taken, name) for name, taken in tensor.bytes_of.items())
    return next((name for taken, name in others if taken >= size), max(others)[1])

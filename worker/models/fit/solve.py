"""A fit's mixture: the allocation over what has prices, beside the stock mixture that it must not fall behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import FitType
from api_client.contract.quant_types import QuantType
from api_client.contract.recipe import TensorRule, exact_pattern, recipe_text
from worker.models.fit.allocate import Market, allocate, allocate_to_kld, type_in
from worker.models.fit.prices import Prices, TensorPrice
from worker.models.fit.space import FitLimit, FitSpace
from worker.models.gguf.types import GGMLType
from worker.models.mixture.policy import is_decided
from worker.models.mixture.recipe import Made, Recipe
from worker.models.mixture.tables import DEFAULT_TYPE

FITTED = "fit"
_PREFERRED = (
    *(QuantType.Q4_K_M, QuantType.Q5_K_M, QuantType.Q3_K_M, QuantType.Q2_K),
    *(QuantType.IQ2_S, QuantType.IQ3_S),
)
"""Of several quant types with the same default type the one that a reader of the file takes it for."""


@dataclass(frozen=True)
class FitMixture:
    """A mixture for a fit.

    Attributes:
        origin: ``fit`` where it was allocated, else the quant type whose stock mixture it is.
        types: Of all tensors of the file, by name.
        size_bytes: Bytes of the file.
        kld: Predicted mean KLD of the tensors that have prices, in nats.
        space: The model.
    """

    origin: str
    types: Mapping[str, GGMLType]
    size_bytes: int
    kld: float
    space: FitSpace

    @cached_property
    def file_type(self) -> QuantType:
        """The type whose number the file bears: that of most weights, as readers of such files guess it."""
        if self.origin != FITTED:
            return QuantType(self.origin)
        weights: Counter[GGMLType] = Counter()
        for tensor in self.space.tensors:
            if is_decided(self.space.model, tensor, self.space.recipe):
                weights[self.types[tensor.name]] += tensor.element_count
        order = (*_PREFERRED, *DEFAULT_TYPE)
        for kind, _ in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
            meant = next((quant for quant in order if DEFAULT_TYPE[quant] is kind and kind.is_quantized), None)
            if meant is not None:
                return meant
        return QuantType.Q8_0

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """Name and type of every tensor that llama-quantize decides, in the order of the file."""
        return tuple(
            (tensor.name, self.types[tensor.name].name)
            for tensor in self.space.tensors
            if is_decided(self.space.model, tensor)
        )

    @property
    def recipe_text(self) -> str:
        """The recipe, for ``--tensor-type-file``."""
        return recipe_text(self.lines)

    @property
    def made(self) -> Made:
        """What the file is made by."""
        rules = tuple(TensorRule(exact_pattern(name), kind) for name, kind in self.lines)
        return Made(self.file_type, Recipe(rules=rules))


@dataclass(frozen=True)
class FitProblem:
    """One fit of one model.

    Attributes:
        space: The model.
        prices: Its price list, of every allowed type, and of the types of the recipe and of stock mixtures.
        fit: What is asked for.
        limit: What that comes to.
    """

    space: FitSpace
    prices: Prices
    fit: FitType
    limit: FitLimit

    @cached_property
    def beside(self) -> QuantType:
        """The stock type of about the same size."""
        return self.space.beside(self.limit)

    @cached_property
    def market(self) -> Market:
        """The tensors that are chosen for."""
        free = {tensor.name for tensor in self.space.free}
        chosen = tuple(tensor for tensor in self.prices.tensors if tensor.name in free)
        return Market(Prices(chosen), self.space.allowed, self.space.alignment if self.limit.padded else 1)

    @cached_property
    def settled(self) -> dict[str, GGMLType]:
        """Types of the tensors that are not chosen for: the recipe's, the source's, else those of the stock mixture."""
        bought = {tensor.name for tensor in self.market.prices.tensors}
        stock = self.space.types_of(self.beside)
        return {name: kind for name, kind in stock.items() if name not in bought}

    def kld_of(self, types: Mapping[str, GGMLType]) -> float:
        """Predicted mean KLD of some tensors' types; a tensor that has no price in its type counts nothing."""
        there = [tensor for tensor in self.prices.tensors if tensor.name in types]
        return sum(tensor.kld_of.get(types[tensor.name].name, 0.0) for tensor in there)

    def mixture(self, types: Mapping[str, GGMLType], origin: str = FITTED) -> FitMixture:
        """A mixture of all tensors, with what it comes to."""
        return FitMixture(origin, types, self.space.size_of(types), self.kld_of(types), self.space)

    def stock(self) -> FitMixture | None:
        """The stock mixture, where it keeps to the limit."""
        mixture = self.mixture(self.space.types_of(self.beside), self.beside.value)
        return mixture if self.keeps(mixture) else None

    def keeps(self, mixture: FitMixture) -> bool:
        """Whether a mixture keeps to the limit."""
        if self.limit.kld is not None:
            return mixture.kld <= self.limit.kld
        assert self.limit.size_bytes is not None
        return self.space.size_of(mixture.types, padded=self.limit.padded) <= self.limit.size_bytes

    def allocated(self) -> FitMixture:
        """The mixture of least predicted KLD within the limit; of fewest bytes where the limit is a KLD.

        Raises:
            PackagingError: ``fit_impossible``.
        """
        types = self._allocated(self.market, self.kld_of(self.settled))
        if types is None:
            raise PackagingError(
                ErrorCode.FIT_IMPOSSIBLE,
                f"{self.fit}: no mixture of {', '.join(self.space.allowed)} keeps to it",
                fields={"quant_type": self.fit.value},
            )
        return self.mixture(self.completed(types))

    @cached_property
    def measurable(self) -> Prices:
        """Prices of the tensors that measurement looks at.

        Those that are chosen for in the allowed types and that of the stock mixture, the others in the type they have.
        """
        free = {tensor.name for tensor in self.market.prices.tensors}
        stock = self.space.types_of(self.beside)
        tensors = []
        for tensor in self.prices.tensors:
            allowed = {type_in(kind, tensor) for kind in self.space.allowed} if tensor.name in free else set()
            kept = [name for name in tensor.kld_of if name in allowed | {stock[tensor.name].name}]
            if kept:
                tensors.append(tensor.only(kept))
        return Prices(tuple(tensors))

    def allocate(self, prices: Prices) -> dict[str, str] | None:
        """An allocation within the limit by other prices of :attr:`measurable`; None where they allow none."""
        free = {tensor.name for tensor in self.market.prices.tensors}
        chosen, settled = [], 0.0
        for tensor in prices.tensors:
            if tensor.name not in free:
                settled += sum(tensor.kld_of.values())
                continue
            whole = self._price_of[tensor.name]
            allowed = {type_in(kind, whole) for kind in self.space.allowed}
            kept = [name for name in tensor.kld_of if name in allowed]
            if not kept:
                return None
            chosen.append(tensor.only(kept))
        allocation = self._allocated(replace(self.market, prices=Prices(tuple(chosen))), settled)
        return (
            None if allocation is None else {tensor.name: self._kind(allocation, tensor) for tensor in prices.tensors}
        )

    def completed(self, types: Mapping[str, str]) -> dict[str, GGMLType]:
        """Types of all tensors, of those that were chosen for as given."""
        free = {tensor.name for tensor in self.market.prices.tensors}
        return self.settled | {name: GGMLType[kind] for name, kind in types.items() if name in free}

    @cached_property
    def _price_of(self) -> dict[str, TensorPrice]:
        return {tensor.name: tensor for tensor in self.prices.tensors}

    def _kind(self, types: Mapping[str, str], tensor: TensorPrice) -> str:
        return types[tensor.name] if tensor.name in types else self.settled[tensor.name].name

    def _allocated(self, market: Market, settled_kld: float) -> Mapping[str, str] | None:
        if self.limit.kld is not None:
            allocation = allocate_to_kld(market, self.limit.kld - settled_kld)
        else:
            assert self.limit.size_bytes is not None
            bought = {tensor.name for tensor in market.prices.tensors}
            stock = self.space.types_of(self.beside)
            others = self.space.size_of(stock, padded=self.limit.padded, without=bought)
            allocation = allocate(market, self.limit.size_bytes - others)
        return None if allocation is None else allocation.types

    def best(self) -> FitMixture:
        """The allocated mixture, or the stock one where its predicted KLD is no higher."""
        fitted, stock = self.allocated(), self.stock()
        if self.limit.kld is None and stock is not None and stock.kld <= fitted.kld:
            return stock
        return fitted


def price_types(space: FitSpace, problems: Sequence[FitProblem]) -> list[GGMLType]:
    """Types to price: the allowed ones, and those of the stock mixtures that fits are judged beside."""
    stock = {kind for problem in problems for kind in space.types_of(problem.beside).values()}
    return sorted({GGMLType[name] for name in space.allowed} | {kind for kind in stock if kind.is_quantized})

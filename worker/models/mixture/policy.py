"""Decides every tensor's type for a quant type, as ``llama-quantize`` of llama.cpp b11434 does.

Pure: names, shapes, types and a few facts of the model in, types out. Tensors are decided in processing order (by
layer, then by name) since some rules count; the result is in the caller's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from worker.models.gguf.tensors import TensorSpec, normal_shape
from worker.models.gguf.types import GGMLType
from worker.models.kernels.kinds import WEIGHTS_REQUIRED
from worker.models.mixture.model import ModelFacts
from worker.models.mixture.names import (
    OUTPUT_NAME,
    TOKEN_EMBEDDING_NAMES,
    Category,
    block_number,
    category_of,
    may_be_quantized,
    processing_key,
    wants_q8_0,
)
from worker.models.mixture.recipe import PLAIN, Recipe
from worker.models.mixture.tables import (
    BY_EXPERTS,
    DEFAULT_TYPE,
    MORE_BITS_IN_70B,
    NARROWER_BLOCK,
    NEEDS_IMATRIX,
    NEEDS_IMATRIX_IN,
    OUTPUT_TYPE,
    RULES,
    SMALLEST,
    TOKEN_EMBEDDING_TYPE,
    WITHOUT_NARROWER,
    TensorPosition,
)

_FFN = (Category.FFN_DOWN, Category.FFN_GATE, Category.FFN_UP)


class ImatrixNeed(NamedTuple):
    """A tensor that cannot be made without an importance matrix."""

    tensor: str
    type: GGMLType


@dataclass(frozen=True, slots=True)
class Mixture:
    """The decision for one quant type.

    Attributes:
        quant_type: The quant type.
        types: One per tensor, in the order the tensors were given.
        fallback_count: Tensors whose row length did not fit the type chosen for them.
        imatrix_needs: Tensors that need an importance matrix, in processing order.
    """

    quant_type: QuantType
    types: tuple[GGMLType, ...]
    fallback_count: int
    imatrix_needs: tuple[ImatrixNeed, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of tensors by ggml type name, most frequent first."""
        by_type = Counter(ggml_type.name for ggml_type in self.types)
        return dict(sorted(by_type.items(), key=lambda item: (-item[1], item[0])))


def choose_mixture(
    model: ModelFacts,
    tensors: Sequence[TensorSpec],
    quant_type: QuantType,
    *,
    has_imatrix: bool,
    recipe: Recipe = PLAIN,
) -> Mixture:
    """Types of all tensors.

    Args:
        model: Facts of the model.
        tensors: Name, shape (ggml order) and present type of every tensor, in any order.
        quant_type: What is asked for.
        has_imatrix: Whether an importance matrix will be used; some rules depend on it.
        recipe: Types that go before the quant type's rules; whether it fits the model is asked of itself.

    Raises:
        PackagingError: ``gguf_invalid`` if a model with experts has a feed-forward tensor whose name bears no layer
            number below the number of layers, ``quant_type_unfit`` for a type whose blocks do not divide a row and that
            has none to fall back to (llama.cpp refuses both too).
    """
    order = sorted(range(len(tensors)), key=lambda index: processing_key(tensors[index].name))
    categories = Counter(category_of(tensor.name) for tensor in tensors)
    decision = _Decision(
        model,
        quant_type,
        has_imatrix,
        recipe,
        values_total=categories[Category.ATTENTION_V],
        tied=not categories[Category.OUTPUT],
    )
    chosen = {index: decision.decide(tensors[index]) for index in order}
    types = tuple(chosen[index] for index in range(len(tensors)))
    return Mixture(quant_type, types, decision.fallback_count, tuple(decision.needs))


def is_decided(model: ModelFacts, tensor: TensorSpec, recipe: Recipe = PLAIN) -> bool:
    """Whether a quant type decides this tensor's type; the others keep theirs."""
    if recipe.leave_output_tensor and tensor.name == OUTPUT_NAME:
        return False
    return may_be_quantized(model.architecture, tensor.name, normal_shape(tensor.shape))


def fitting_type(chosen: GGMLType, row_length: int) -> GGMLType:
    """The type itself, or the one that llama-quantize falls back to where its blocks do not divide a row."""
    if row_length % chosen.block_length == 0:
        return chosen
    narrower = NARROWER_BLOCK.get(chosen, chosen)
    return narrower if row_length % narrower.block_length == 0 else GGMLType.F16


@dataclass
class _Decision:
    """One walk over the tensors, with the running counts that some rules look at."""

    model: ModelFacts
    quant_type: QuantType
    has_imatrix: bool
    recipe: Recipe
    values_total: int
    tied: bool
    fallback_count: int = 0
    needs: list[ImatrixNeed] = field(default_factory=list)
    seen: Counter[Category] = field(default_factory=Counter)

    def decide(self, tensor: TensorSpec) -> GGMLType:
        """Type of the next tensor in processing order."""
        if not is_decided(self.model, tensor, self.recipe):
            return tensor.type
        chosen = self.recipe.first_type(tensor.name)
        if chosen is None:
            chosen = self._by_lines(tensor)
        if self._needs_imatrix(tensor.name, chosen):
            self.needs.append(ImatrixNeed(tensor.name, chosen))
        return chosen

    def _by_lines(self, tensor: TensorSpec) -> GGMLType:
        default = DEFAULT_TYPE[self.quant_type]
        if not default.is_quantized:
            return default
        asked = self.recipe.line_type(tensor.name)
        if asked is None:
            asked = default if self.recipe.pure else self._by_rules(tensor, default)
        return self._fit(tensor, asked)

    def _by_rules(self, tensor: TensorSpec, default: GGMLType) -> GGMLType:
        if wants_q8_0(self.model.architecture, tensor.name):
            return GGMLType.Q8_0
        category = category_of(tensor.name)
        if category is Category.OUTPUT or (self.tied and category is Category.TOKEN_EMBEDDING):
            return self._output_type(tensor, default)
        if self.quant_type in BY_EXPERTS:
            return self._by_experts(tensor, category)
        if category is Category.TOKEN_EMBEDDING:
            return TOKEN_EMBEDDING_TYPE.get(self.quant_type, default)
        place = self._place(tensor.name, category)
        rules = RULES.get(category, {}).get(self.quant_type, ())
        chosen = next((rule.type for rule in rules if rule.condition(place)), default)
        if category is Category.ATTENTION_V and self.quant_type not in SMALLEST:
            chosen = self._value_type(chosen)
        return chosen

    def _output_type(self, tensor: TensorSpec, default: GGMLType) -> GGMLType:
        if self.recipe.output_tensor_type is not None:
            return self.recipe.output_tensor_type
        if self.quant_type in BY_EXPERTS:
            return BY_EXPERTS[self.quant_type][1]
        if self.model.architecture == "falcon" or tensor.row_length % default.block_length:
            return GGMLType.Q8_0
        if default is GGMLType.Q8_0:
            return default
        return OUTPUT_TYPE.get(self.quant_type, GGMLType.Q6_K)

    def _by_experts(self, tensor: TensorSpec, category: Category) -> GGMLType:
        """Other weights of three dimensions, which only BailingMoE 3 has, are no experts'."""
        experts, others = BY_EXPERTS[self.quant_type]
        stacked = len(normal_shape(tensor.shape)) > 2 and tensor.shape[2] > 1
        return experts if stacked and (self.model.architecture != "bailingmoe3" or category in _FFN) else others

    def _value_type(self, chosen: GGMLType) -> GGMLType:
        """More bits for value projections where they are a small part of the model."""
        if self.model.expert_count == 8:
            return GGMLType.Q8_0
        return MORE_BITS_IN_70B.get(chosen, chosen) if self.model.is_70b else chosen

    def _place(self, name: str, category: Category) -> TensorPosition:
        """Count the tensor in. Feed-forward tensors of models with experts go by the layer number in their name."""
        index = self.seen[category]
        self.seen[category] += 1
        total = self.values_total if category is Category.ATTENTION_V else self.model.block_count
        if category in _FFN and self.model.expert_count > 1 and self.quant_type not in SMALLEST:
            index = self._layer(name)
        return TensorPosition(self.model, self.has_imatrix, index, total)

    def _layer(self, name: str) -> int:
        number = block_number(name)
        if number is None or not 0 <= number < self.model.block_count:
            raise PackagingError(
                ErrorCode.GGUF_INVALID,
                f"tensor {name!r} of a model with {self.model.expert_count} experts bears no layer number"
                f" from 0 to {self.model.block_count - 1}",
                fields={"tensor": name, "block_count": self.model.block_count},
            )
        return number

    def _fit(self, tensor: TensorSpec, chosen: GGMLType) -> GGMLType:
        """A type whose blocks divide the row."""
        self.fallback_count += tensor.row_length % chosen.block_length != 0
        if chosen in WITHOUT_NARROWER and tensor.row_length % chosen.block_length:
            raise PackagingError(
                ErrorCode.QUANT_TYPE_UNFIT,
                f"tensor {tensor.name!r} has rows of {tensor.row_length}, no multiple of the {chosen.block_length} that"
                f" a block of {chosen.name} holds, and llama.cpp has no type to fall back to",
                fields={
                    "quant_type": self.quant_type.value,
                    "tensor": tensor.name,
                    "type": chosen.name,
                    "row_length": tensor.row_length,
                },
            )
        return fitting_type(chosen, tensor.row_length)

    def _needs_imatrix(self, name: str, chosen: GGMLType) -> bool:
        if name == OUTPUT_NAME or name in TOKEN_EMBEDDING_NAMES:
            return chosen in WEIGHTS_REQUIRED  # which only a recipe gives them, and llama-quantize ends at an assertion
        return chosen in NEEDS_IMATRIX_IN.get(self.quant_type, NEEDS_IMATRIX)

"""What a request's recipe comes to for a model: ``--pure``, ``--tensor-type`` and their like of llama-quantize b11434.

In the order of ``llama_tensor_get_type`` (``llama-quant.cpp``): the types of embeddings and head come first and hold in
float files, too; then, in files of a quantized type, the first line whose pattern is found in the name; then the quant
type's own rules, unless ``pure``. A line that could have no effect is refused here and silently passed over there, and
a type whose blocks do not divide a tensor's rows is refused where it replaces it, or ends in an assertion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType, FitType
from api_client.contract.quant_types import QuantType
from api_client.contract.recipe import RecipeOptions, TensorRule, exact_name
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.mixture.names import OUTPUT_NAME, TOKEN_EMBEDDING_NAMES

_OWN_TABLE = "per_layer_token_embd.weight"
"""The embedding that a line of its own takes out of ``token_embedding_type``."""


@dataclass(frozen=True)
class Recipe:
    """Types by request.

    Attributes:
        pure: Skip the quant type's rules.
        leave_output_tensor: Keep the head as it is.
        output_tensor_type: Type of the head, and of tied embeddings by the rules.
        token_embedding_type: Type of the embeddings.
        rules: Lines, the first that matches counts.
    """

    pure: bool = False
    leave_output_tensor: bool = False
    output_tensor_type: GGMLType | None = None
    token_embedding_type: GGMLType | None = None
    rules: tuple[TensorRule, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, options: RecipeOptions) -> Recipe:
        """The recipe that a request names."""
        return cls(
            options.pure,
            options.leave_output_tensor,
            _type(options.output_tensor_type),
            _type(options.token_embedding_type),
            options.rules,
        )

    @cached_property
    def _exact(self) -> dict[str, int]:
        """First line by the whole name that it is for; a fit has one for every tensor."""
        first_rule: dict[str, int] = {}
        for index, rule in enumerate(self.rules):
            name = exact_name(rule.pattern)
            if name is not None:
                first_rule.setdefault(name, index)
        return first_rule

    @cached_property
    def _searched(self) -> list[tuple[int, re.Pattern[str]]]:
        return [
            (index, re.compile(rule.pattern, re.ASCII))
            for index, rule in enumerate(self.rules)
            if exact_name(rule.pattern) is None
        ]

    def line_of(self, name: str) -> int | None:
        """Number of the line that decides a tensor's type."""
        exact = self._exact.get(name)
        for index, pattern in self._searched:
            if exact is not None and index > exact:
                break
            if pattern.search(name):
                return index
        return exact

    def first_type(self, name: str) -> GGMLType | None:
        """Type by the two options that go before everything else."""
        if self.token_embedding_type is not None and name in TOKEN_EMBEDDING_NAMES:
            return None if name == _OWN_TABLE and self.line_of(name) is not None else self.token_embedding_type
        return self.output_tensor_type if name == OUTPUT_NAME else None

    def line_type(self, name: str) -> GGMLType | None:
        """Type by the lines."""
        index = self.line_of(name)
        return None if index is None else GGMLType[self.rules[index].type]

    def check(self, tensors: Sequence[TensorSpec]) -> None:
        """Refuse what the model does not have.

        Args:
            tensors: Those whose types a quant type decides.

        Raises:
            PackagingError: ``recipe_invalid`` for a pattern that is found in no name, a type that rows do not fit, the
                type of a head or embeddings that are not there.
        """
        for tensor in tensors:
            chosen = self.first_type(tensor.name)
            if chosen is None:
                chosen = self.line_type(tensor.name)
            if chosen is not None and tensor.row_length % chosen.block_length:
                raise _unfit(tensor, chosen)
        names = [tensor.name for tensor in tensors]
        used = {self.line_of(name) for name in names}
        for index, rule in enumerate(self.rules):
            if index not in used and not any(re.search(rule.pattern, name, re.ASCII) for name in names):
                raise _unused("tensor_types", f"{rule.text!r} matches no tensor that is quantized")
        if self.token_embedding_type is not None and not any(name in TOKEN_EMBEDDING_NAMES for name in names):
            raise _unused("token_embedding_type", "token_embedding_type: the model has no token embeddings")


PLAIN = Recipe()
"""Nothing asked for."""


class Made(NamedTuple):
    """What a file is made by: the type whose number it bears and whose rules hold, and the recipe before them."""

    file_type: QuantType
    recipe: Recipe


@dataclass(frozen=True)
class Recipes:
    """The recipes of one pass.

    Attributes:
        asked: The request's, for every ordinary type.
        fitted: What each fit has come to.
        hits_lattice: Whether blocks that training left on a lattice are made exact, where llama-quantize's are not.
    """

    asked: Recipe = PLAIN
    fitted: Mapping[FitType, Made] = field(default_factory=dict)
    hits_lattice: bool = False

    def of(self, quant_type: AnyQuantType) -> Made:
        """What the file of a quant type is made by."""
        return Made(quant_type, self.asked) if isinstance(quant_type, QuantType) else self.fitted[quant_type]


NO_RECIPES = Recipes()
"""Ordinary types, as llama-quantize makes them by itself."""


def _type(name: str | None) -> GGMLType | None:
    return None if name is None else GGMLType[name]


def _unused(part: str, reason: str) -> PackagingError:
    return PackagingError(ErrorCode.RECIPE_INVALID, f"recipe: {reason}", fields={"field": f"recipe.{part}"})


def _unfit(tensor: TensorSpec, chosen: GGMLType) -> PackagingError:
    return PackagingError(
        ErrorCode.RECIPE_INVALID,
        f"recipe: tensor {tensor.name!r} has rows of {tensor.row_length}, no multiple of the {chosen.block_length} that"
        f" a block of {chosen.name} holds",
        remedy="Give it a type of shorter blocks, such as Q8_0, Q5_0 or F16.",
        fields={"field": "recipe", "tensor": tensor.name, "type": chosen.name, "row_length": tensor.row_length},
    )

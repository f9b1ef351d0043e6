"""What a fit means for one model: the bytes it may take, and the range in which there is a file at all.

Everything here comes of headers: names, shapes and types of tensors, the size of the file's own header, and, for a
target, the model's dimensions. Whether a bound can be kept is known before any weight is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import FitType
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.recommend import ModelShape, parse_target, shape_of
from api_client.words.formatting import format_size
from worker.models.fit.groups import together
from worker.models.gguf.tensors import TensorSpec, align_up
from worker.models.gguf.types import GGMLType, tensor_bytes
from worker.models.mixture.model import ModelFacts, model_facts
from worker.models.mixture.plan import plan_output
from worker.models.mixture.policy import choose_mixture, fitting_type, is_decided
from worker.models.mixture.recipe import PLAIN, Recipe
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.source import open_source
from worker.models.sizes import plain_values

STOCK_TYPES = tuple(kind for kind, info in QUANT_TYPES.items() if info.family == "K" or kind is QuantType.Q8_0)
"""Types beside which a fit is judged: what people choose among when they want K-quants of some size."""


@dataclass(frozen=True)
class FitLimit:
    """What a fit may take.

    Attributes:
        size_bytes: Most bytes of the file; None where the KLD decides.
        kld: Largest predicted mean KLD; None where bytes decide.
        padded: Whether padding and header count; they do not for bits per weight.
    """

    size_bytes: int | None = None
    kld: float | None = None
    padded: bool = True


@dataclass(frozen=True)
class FitSpace:
    """A model's tensors, as far as fits look at them.

    Attributes:
        model: Facts that mixtures depend on.
        tensors: Name, shape and type of each tensor of the unquantized file.
        header_bytes: Bytes before the data of a quantized file; the same for every mixture.
        alignment: Of the data.
        allowed: ggml types that a fit may choose from, those of fewer bits first.
        recipe: Types that the request gives tensors; they are not chosen for.
        shape: Dimensions for memory, where a target may be asked for.
    """

    model: ModelFacts
    tensors: Sequence[TensorSpec]
    header_bytes: int
    alignment: int
    allowed: tuple[str, ...]
    recipe: Recipe = PLAIN
    shape: ModelShape | None = None

    def types_of(self, quant_type: QuantType) -> dict[str, GGMLType]:
        """The stock mixture of a type, by tensor; made with an importance matrix, as every fit is."""
        mixture = choose_mixture(self.model, self.tensors, quant_type, has_imatrix=True, recipe=self.recipe)
        return {tensor.name: kind for tensor, kind in zip(self.tensors, mixture.types, strict=True)}

    @cached_property
    def free(self) -> tuple[TensorSpec, ...]:
        """The tensors that a fit chooses types for."""
        return tuple(
            tensor
            for tensor in self.tensors
            if is_decided(self.model, tensor, self.recipe)
            and self.recipe.first_type(tensor.name) is None
            and self.recipe.line_of(tensor.name) is None
        )

    def size_of(self, types: Mapping[str, GGMLType], *, padded: bool = True, without: Collection[str] = ()) -> int:
        """Bytes of a file of these types, exact.

        Args:
            types: Of all tensors.
            padded: Count header and padding; else tensors' data alone.
            without: Names of tensors that are left out.
        """
        alignment = self.alignment if padded else 1
        counted = (tensor for tensor in self.tensors if tensor.name not in without)
        sizes = (align_up(tensor_bytes(types[tensor.name], tensor.shape), alignment) for tensor in counted)
        return sum(sizes) + (self.header_bytes if padded else 0)

    @property
    def elements(self) -> int:
        """Number of weights."""
        return sum(tensor_bytes(GGMLType.I8, tensor.shape) for tensor in self.tensors)

    def uniform(self, kinds: Sequence[str], *, largest: bool) -> dict[str, GGMLType]:
        """The mixture of fewest, or most, bytes of some types, tensors that share a type with the same."""
        types = self.types_of(QuantType.F16)
        for group in together(tensor.name for tensor in self.free):
            tensors = [self.free[place] for place in group]
            bundles = [[fitting_type(GGMLType[kind], tensor.shape[0]) for tensor in tensors] for kind in kinds]
            sizes = [
                sum(
                    tensor_bytes(tensor_type, tensor.shape) for tensor, tensor_type in zip(tensors, bundle, strict=True)
                )
                for bundle in bundles
            ]
            best = bundles[sizes.index((max if largest else min)(sizes))]
            types |= {tensor.name: tensor_type for tensor, tensor_type in zip(tensors, best, strict=True)}
        return types

    def limit_of(self, fit: FitType, context: int, machine_bytes: int) -> FitLimit:
        """What a fit may take of this model.

        Args:
            fit: What is asked for.
            context: Tokens for which a target's memory must suffice.
            machine_bytes: Memory of this machine, for the target ``cpu``.

        Raises:
            PackagingError: ``fit_impossible`` naming the range in which there are files; ``request_invalid`` for a
                target that does not exist.
        """
        bound = fit.bound
        if bound.kld is not None:
            return FitLimit(kld=bound.kld)
        if bound.bits_per_weight is not None:
            limit = FitLimit(int(bound.bits_per_weight * self.elements / 8), padded=False)
        elif bound.like is not None:
            limit = FitLimit(self.size_of(self.types_of(bound.like)))
        elif bound.target is not None:
            limit = FitLimit(self._target_bytes(fit, bound.target, context, machine_bytes))
        else:
            limit = FitLimit(bound.size_bytes)
        self._check(fit, limit)
        return limit

    def most_bytes(self, limit: FitLimit) -> int:
        """The most that a fit's file may turn out to take."""
        largest = self.size_of(self.uniform(self.allowed, largest=True))
        if limit.size_bytes is None:
            return largest
        padding = 0 if limit.padded else self.header_bytes + self.alignment * len(self.tensors)
        return min(limit.size_bytes + padding, largest)

    def beside(self, limit: FitLimit) -> QuantType:
        """The stock type that a fit is judged beside: the largest file within the limit, else the smallest of all."""
        if limit.size_bytes is None:
            return QuantType.Q4_K_M
        sizes = {kind: self.size_of(self.types_of(kind), padded=limit.padded) for kind in STOCK_TYPES}
        within = [kind for kind in STOCK_TYPES if sizes[kind] <= limit.size_bytes]
        if not within:
            return min(STOCK_TYPES, key=lambda kind: sizes[kind])
        return max(within, key=lambda kind: (sizes[kind], QUANT_TYPES[kind].quality_rank))

    def _target_bytes(self, fit: FitType, name: str, context: int, machine_bytes: int) -> int:
        target = parse_target(name, machine_bytes)
        if self.shape is None:
            raise PackagingError(ErrorCode.FIT_IMPOSSIBLE, f"{fit}: the model's dimensions are not known")
        rest = target.memory_bytes - self.shape.cache_bytes(context) - self.shape.buffer_bytes()
        # what is larger than F16 is no mistake here: the place simply has room
        return min(rest, self.size_of(self.types_of(QuantType.F16)))

    def _check(self, fit: FitType, limit: FitLimit) -> None:
        assert limit.size_bytes is not None
        least = self.size_of(self.uniform(self.allowed, largest=False), padded=limit.padded)
        most = self.size_of(self.types_of(QuantType.F16), padded=limit.padded)
        if least <= limit.size_bytes <= most:
            return
        if limit.padded:
            said, low, high = (format_size(size) for size in (max(0, limit.size_bytes), least, most))
        else:
            said, low, high = (f"{8 * size / self.elements:.3f} bpw" for size in (limit.size_bytes, least, most))
        low, high = (f"{low} ({least} bytes)", f"{high} ({most} bytes)") if limit.padded else (low, high)
        words = f"there are files from {low}, all tensors of the smallest type allowed, to {high}, F16"
        if fit.bound.target is not None:
            words = f"{said} are left for the file beside KV cache and buffers; {words}"
        raise PackagingError(
            ErrorCode.FIT_IMPOSSIBLE,
            f"{fit} is {said} of this model: {words}" if fit.bound.target is None else f"{fit}: {words}",
            fields={
                "quant_type": fit.value,
                "limit_bytes": limit.size_bytes,
                "smallest_bytes": least,
                "largest_bytes": most,
            },
        )


def space_of(source: Path, matrix: ImatrixData | None, allowed: tuple[str, ...], recipe: Recipe = PLAIN) -> FitSpace:
    """The space of an unquantized GGUF file.

    Args:
        source: The file, or the first of its shards.
        matrix: What files will be quantized with, which they name in their header.
        allowed: ggml types that a fit may choose from.
        recipe: Types that the request gives tensors.

    Raises:
        PackagingError: ``gguf_invalid``, ``recipe_invalid``.
    """
    with open_source(source) as opened:
        model, tensors = model_facts(opened.metadata), tuple(opened.tensors)
        recipe.check([tensor for tensor in tensors if is_decided(model, tensor, recipe)])
        mixture = choose_mixture(model, tensors, QuantType.F16, has_imatrix=True, recipe=recipe)
        plan = plan_output(opened.metadata, tensors, mixture, matrix.stamp if matrix is not None else None)
        return FitSpace(
            model, tensors, len(plan.header), plan.alignment, allowed, recipe, shape_of(plain_values(opened.metadata))
        )

"""Plans of all output files, and every refusal that can be known from headers alone, before any byte is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType
from worker.models.gguf.reader import invalid
from worker.models.gguf.tensors import TensorInfo
from worker.models.kernels import FLOAT_TYPES, QUANTIZED_TYPES
from worker.models.mixture.model import model_facts
from worker.models.mixture.plan import OutputPlan, plan_output
from worker.models.mixture.policy import ImatrixNeed, choose_mixture, is_decided
from worker.models.mixture.recipe import NO_RECIPES, Recipes
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.source import Source


@dataclass(frozen=True)
class Preparation:
    """Everything the pass needs to know.

    Attributes:
        plans: The files to make. All of them list the same tensors in the same order.
        tensors: The source's tensors in that order.
        weights: Importance weights by tensor name, for tensors that have them.
        hits_lattice: As of ``Recipes``.
    """

    plans: Mapping[AnyQuantType, OutputPlan]
    tensors: tuple[TensorInfo, ...]
    weights: Mapping[str, NDArray[np.float32]]
    hits_lattice: bool = False


def prepare(
    source: Source,
    quant_types: Sequence[AnyQuantType],
    imatrix: ImatrixData | None,
    recipes: Recipes = NO_RECIPES,
    *,
    allow_requantize: bool,
) -> Preparation:
    """Plan the files of all quant types.

    Raises:
        PackagingError: ``gguf_invalid`` (nothing to quantize, or a tensor that no rule can place),
            ``gguf_already_quantized``, ``imatrix_required``, ``imatrix_invalid``, ``imatrix_mismatch``,
            ``recipe_invalid``.
    """
    if not source.tensors:
        raise invalid(source.name, "holds no tensors")
    _check_unquantized(source, allow_requantize)
    if imatrix is not None:
        imatrix.check_finite()
    model = model_facts(source.metadata)
    recipes.asked.check([tensor for tensor in source.tensors if is_decided(model, tensor, recipes.asked)])
    plans: dict[AnyQuantType, OutputPlan] = {}
    for quant_type in quant_types:
        file_type, recipe = recipes.of(quant_type)
        mixture = choose_mixture(model, source.tensors, file_type, has_imatrix=imatrix is not None, recipe=recipe)
        if imatrix is None and mixture.imatrix_needs:
            raise imatrix_required(quant_type, mixture.imatrix_needs[0], "no importance matrix is given")
        plans[quant_type] = plan_output(source.metadata, source.tensors, mixture, imatrix.stamp if imatrix else None)
    order = next(iter(plans.values())).sources
    tensors = tuple(source.tensors[index] for index in order)
    converted = _converted(source, tensors, plans)
    weights = _weights(imatrix, converted)
    if imatrix is not None:
        _check_needs(imatrix, plans, converted, weights)
    return Preparation(plans, tensors, weights, recipes.hits_lattice)


def imatrix_required(quant_type: AnyQuantType, need: ImatrixNeed, why: str) -> PackagingError:
    """The refusal that llama-quantize gives as "this quantization requires an imatrix", with tensor and type."""
    return PackagingError(
        ErrorCode.IMATRIX_REQUIRED,
        f"{quant_type.value} makes tensor {need.tensor!r} {need.type.name}, which needs an importance matrix: {why}",
        fields={"quant_type": quant_type.value, "tensor": need.tensor, "type": need.type.name},
    )


def _check_unquantized(source: Source, allow_requantize: bool) -> None:
    quantized = next((tensor for tensor in source.tensors if tensor.type.is_quantized), None)
    if quantized is None or allow_requantize:
        return
    raise PackagingError(
        ErrorCode.GGUF_ALREADY_QUANTIZED,
        f"{source.name} is already quantized: tensor {quantized.name!r} is {quantized.type.name}",
        fields={"file": source.name, "tensor": quantized.name, "type": quantized.type.name},
    )


def _converted(
    source: Source, tensors: Sequence[TensorInfo], plans: Mapping[AnyQuantType, OutputPlan]
) -> tuple[TensorInfo, ...]:
    """Tensors whose type changes in some file; each must be of a type that can be read as numbers."""
    converted = tuple(
        tensor
        for index, tensor in enumerate(tensors)
        if any(plan.tensors[index].type is not tensor.type for plan in plans.values())
    )
    for tensor in converted:
        if tensor.type not in FLOAT_TYPES and tensor.type not in QUANTIZED_TYPES:
            raise invalid(
                source.name,
                f"tensor {tensor.name!r} is {tensor.type.name}, which cannot be quantized",
                tensor=tensor.name,
            )
    return converted


def _weights(imatrix: ImatrixData | None, converted: Sequence[TensorInfo]) -> dict[str, NDArray[np.float32]]:
    if imatrix is None:
        return {}
    entries = {tensor.name: imatrix.weights_of(tensor) for tensor in converted}
    weights = {name: entry for name, entry in entries.items() if entry is not None}
    if converted and not weights:
        raise PackagingError(
            ErrorCode.IMATRIX_MISMATCH,
            f"{imatrix.file_name} has no entry for any tensor of this model, it has {sorted(imatrix.entries)[:3]} ...;"
            f" expected the like of {converted[-1].name!r}",
            fields={"file": imatrix.file_name},
        )
    return weights


def _check_needs(
    imatrix: ImatrixData,
    plans: Mapping[AnyQuantType, OutputPlan],
    converted: Sequence[TensorInfo],
    weights: Mapping[str, NDArray[np.float32]],
) -> None:
    """A tensor that needs weights must have an entry, as far as its type changes."""
    present = {tensor.name: tensor.type for tensor in converted}
    for quant_type, plan in plans.items():
        for need in plan.mixture.imatrix_needs:
            if need.tensor not in weights and present.get(need.tensor, need.type) is not need.type:
                raise imatrix_required(quant_type, need, f"{imatrix.file_name} has no entry for it")

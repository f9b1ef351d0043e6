"""Sizes before work: the exact size of every GGUF a job will write, from headers alone.

The conversion is planned as ``convert`` will plan it, so whatever it would refuse (architecture, tokenizer, vocabulary)
is refused here, before any heavy work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from api_client.contract.fit import AnyQuantType, fits_of
from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import shape_of
from api_client.contract.rules import needs_imatrix_stage
from worker.models.convert.metadata import Naming
from worker.models.convert.nextn import of_prediction_layers
from worker.models.convert.pipeline import plan_conversion
from worker.models.convert.plan import ConversionPlan
from worker.models.convert.vocabulary import adapter_rows
from worker.models.fit.space import FitSpace
from worker.models.gguf.tensors import DEFAULT_ALIGNMENT, TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.mixture.model import facts_from_values
from worker.models.mixture.policy import choose_mixture, is_decided
from worker.models.mixture.recipe import Recipe
from worker.models.mixture.sizes import predict_sizes
from worker.models.sizes import machine_memory_bytes
from worker.stages.context import StageContext
from worker.stages.inputs import JobInputs, describe_inputs


@dataclass(frozen=True)
class SizeEstimate:
    """Bytes of every GGUF of the job.

    ``unquantized_bytes`` is exact for a base model; a merge adds at most the adapter's own size (an untied head). A fit
    has the most bytes that it may come to. ``prediction_layers`` is how many layers for predicting further ahead are in
    the unquantized file, ``beyond_matrix`` the quant types that need a matrix of them, which running the model as
    transformers does never gives.
    """

    unquantized_bytes: int
    quantized_bytes: Mapping[AnyQuantType, int]
    projector_bytes: int | None = None
    prediction_layers: int = 0
    beyond_matrix: tuple[str, ...] = ()

    def bytes_of(self, *, unquantized: bool) -> int:
        """All of them together, with the unquantized one or without it."""
        others = sum(self.quantized_bytes.values()) + (self.projector_bytes or 0)
        return others + (self.unquantized_bytes if unquantized else 0)


def estimate_sizes(context: StageContext, inputs: JobInputs, projector: ConversionPlan | None = None) -> SizeEstimate:
    """Plan the conversion and predict every quantized file.

    Args:
        context: The stage's.
        inputs: The job's inputs.
        projector: The plan of the projector that is made beside the text model.

    Raises:
        PackagingError: as ``worker.models.convert.pipeline.plan_conversion``; ``imatrix_required`` is not checked here.
            ``recipe_invalid``; ``fit_impossible`` naming the range in which there are files.
    """
    _, plan = plan_conversion(
        inputs.converted,
        tokenizer=inputs.tokenizer,
        vocabulary_rows=adapter_rows(inputs.adapter) if inputs.adapter and context.options.merge_lora else None,
        gguf_dtype=context.request.gguf_dtype,
        naming=Naming(describe_inputs(context, inputs)),
        setting=context.setting(),
    )
    tensors = [TensorSpec(tensor.name, tensor.shape, GGMLType[tensor.type]) for tensor in plan.tensors]
    recipe = Recipe.of(context.request.recipe)
    model = facts_from_values(plan.metadata)
    if context.options.quantize:
        recipe.check([tensor for tensor in tensors if is_decided(model, tensor, recipe)])
    sizes = predict_sizes(
        tensors,
        [quant for quant in context.options.quant_types if isinstance(quant, QuantType)],
        model=model,
        has_imatrix=needs_imatrix_stage(context.request, context.options),
        recipe=recipe,
    )
    space = FitSpace(
        model=model,
        tensors=tensors,
        header_bytes=len(plan.header),
        alignment=DEFAULT_ALIGNMENT,
        allowed=context.request.fit.allowed,
        recipe=recipe,
        shape=shape_of(plan.metadata),
    )
    fits: dict[AnyQuantType, int] = {
        fit: space.most_bytes(space.limit_of(fit, context.request.fit.context, machine_memory_bytes()))
        for fit in fits_of(context.options.quant_types)
    }
    predicting = set(of_prediction_layers(plan.architecture, plan.metadata, (tensor.name for tensor in tensors)))
    # the prediction knows tensors only; the metadata, vocabulary included, is as large as the plan's header
    adapter_bytes = sum(entry.size_bytes for entry in inputs.adapter.tensors.values()) if inputs.adapter else 0
    return SizeEstimate(
        plan.size_bytes + adapter_bytes,
        {**{quant: size.data_bytes + len(plan.header) for quant, size in sizes.items()}, **fits},
        projector.size_bytes if projector is not None else None,
        plan.prediction_layers,
        tuple(
            quant.value
            for quant in context.options.quant_types
            if isinstance(quant, QuantType)
            and context.request.imatrix.mode != "file"
            and not predicting.isdisjoint(
                need.tensor
                for need in choose_mixture(model, tensors, quant, has_imatrix=True, recipe=recipe).imatrix_needs
            )
        ),
    )

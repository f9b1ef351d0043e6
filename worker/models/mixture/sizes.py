"""Sizes before work: how large a file each quant type makes, from headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from api_client.contract.quant_types import QuantType
from worker.models.gguf.metadata import Metadata
from worker.models.gguf.tensors import TensorSpec
from worker.models.mixture.model import ModelFacts, model_facts
from worker.models.mixture.plan import ImatrixStamp, plan_output
from worker.models.mixture.policy import Mixture, choose_mixture
from worker.models.mixture.recipe import PLAIN, Recipe


class PredictedSize(NamedTuple):
    """Size of a file that does not exist yet.

    ``header_bytes`` and ``data_bytes`` include their padding and add up to ``file_bytes``. The data is always exact,
    the header as exact as the metadata given.
    """

    file_bytes: int
    header_bytes: int
    data_bytes: int
    bits_per_weight: float
    mixture: Mixture


def predict_sizes(
    tensors: Sequence[TensorSpec],
    quant_types: Iterable[QuantType],
    *,
    metadata: Metadata | None = None,
    model: ModelFacts | None = None,
    has_imatrix: bool = False,
    recipe: Recipe = PLAIN,
    stamp: ImatrixStamp | None = None,
) -> dict[QuantType, PredictedSize]:
    """Predict the size of every output.

    Args:
        tensors: Name, shape and type of each tensor of the unquantized file: from its header, or what a converter
            will write.
        quant_types: The types asked for.
        metadata: Metadata of the unquantized file. Without it (nothing converted yet) the header's size leaves out the
            metadata, the vocabulary among it.
        model: Facts of the model; read from ``metadata`` where not given.
        has_imatrix: Whether an importance matrix will be used; a ``stamp`` implies it.
        recipe: Types that go before those of the quant types.
        stamp: What will be written of the importance matrix, if known.

    Raises:
        PackagingError: ``gguf_invalid`` as :func:`~worker.models.mixture.policy.choose_mixture`.
        ValueError: If neither ``metadata`` nor ``model`` is given.
    """
    if model is None:
        if metadata is None:
            raise ValueError("either the metadata or the facts of the model are needed")
        model = model_facts(metadata)
    matrix = has_imatrix or stamp is not None
    predicted = {}
    for quant_type in quant_types:
        mixture = choose_mixture(model, tensors, quant_type, has_imatrix=matrix, recipe=recipe)
        plan = plan_output(metadata or {}, tensors, mixture, stamp)
        header_bytes = len(plan.header)
        predicted[quant_type] = PredictedSize(
            plan.size_bytes, header_bytes, plan.size_bytes - header_bytes, plan.bits_per_weight, mixture
        )
    return predicted

"""Sizes of every quant type's file for a model, predicted from headers; ``recommend`` judges them. Needs torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from config.roots import NOWHERE_ELSE, Roots
from worker.models.gguf.metadata import Metadata
from worker.setting import WorkSetting

if TYPE_CHECKING:
    from worker.models.checkpoint import BaseModel
    from worker.models.convert.plan import ConversionPlan
    from worker.models.gguf.tensors import TensorSpec
    from worker.models.mixture.sizes import PredictedSize


def machine_memory_bytes() -> int:
    """Memory of this machine, which the target ``cpu`` means."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def predict_file_sizes(
    path: Path, allowed_roots: Roots = NOWHERE_ELSE
) -> tuple[Mapping[str, Any], dict[QuantType, int]]:
    """Metadata as plain values, and the size in bytes of the file of every quant type whose blocks fit the model.

    Args:
        path: Base model directory, or an unquantized GGUF file (its first shard where it is split).
        allowed_roots: Where symlinks inside the directory may lead.

    Raises:
        PackagingError: ``base_model_not_found``, ``gguf_invalid``, and what planning the conversion raises.
    """
    if path.is_dir():
        return _from_directory(path, allowed_roots)
    if path.is_file():
        return _from_gguf(path)
    raise PackagingError(ErrorCode.BASE_MODEL_NOT_FOUND, f"{path} does not exist", fields={"path": str(path)})


def predict_projector_bytes(directory: Path, allowed_roots: Roots = NOWHERE_ELSE) -> int | None:
    """Bytes of the projector that a job makes of a model by itself; ``None`` where it makes none, or cannot.

    Args:
        directory: Base model directory; for a file there is none.
        allowed_roots: Where symlinks inside the directory may lead.
    """
    from worker.models.checkpoint import open_base_model
    from worker.models.convert.projector import senses_of

    if not directory.is_dir():
        return None
    try:
        base = open_base_model(directory, allowed_roots=allowed_roots, as_stored=True)
        if not senses_of(base.config).has_projector:
            return None
        plan = _planned(base, ModelPart.PROJECTOR, allowed_roots)
    except PackagingError:
        return None  # prepare says why
    return plan.size_bytes if plan.tensors else None


def _from_gguf(path: Path) -> tuple[Mapping[str, Any], dict[QuantType, int]]:
    from worker.models.quantize.source import open_source

    with open_source(path) as file:
        metadata = plain_values(file.metadata)
        sizes = _predicted(file.tensors, metadata=file.metadata)
    return metadata, {quant: size.file_bytes for quant, size in sizes.items()}


def _predicted(tensors: Sequence[TensorSpec], **of_model: Any) -> dict[QuantType, PredictedSize]:
    """By type, as :func:`~worker.models.mixture.sizes.predict_sizes`; without types that fit no row."""
    from worker.models.mixture.sizes import predict_sizes

    sizes: dict[QuantType, PredictedSize] = {}
    for quant, info in QUANT_TYPES.items():
        try:
            sizes |= predict_sizes(tensors, [quant], has_imatrix=info.needs_imatrix, **of_model)
        except PackagingError as error:
            if error.code is not ErrorCode.QUANT_TYPE_UNFIT:
                raise
    return sizes


def plain_values(metadata: Metadata) -> dict[str, Any]:
    """Metadata as plain values; of the vocabulary its length alone, as a list of nothing."""
    values = {key: value.value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    tokens = metadata.get("tokenizer.ggml.tokens")
    return values if tokens is None else {**values, "tokenizer.ggml.tokens": [None] * tokens.count}


def _planned(base: BaseModel, part: ModelPart, allowed_roots: Roots) -> ConversionPlan:
    """The conversion of one part of a model as it lies there."""
    from worker.models.convert.metadata import Naming, describe
    from worker.models.convert.pipeline import plan_conversion

    with tempfile.TemporaryDirectory(prefix="trainpack-") as scratch:
        setting = WorkSetting(roots=allowed_roots, scratch_dir=Path(scratch))
        _, plan = plan_conversion(base, naming=Naming(describe(base.directory), part=part), setting=setting)
    return plan


def _from_directory(path: Path, allowed_roots: Roots) -> tuple[Mapping[str, Any], dict[QuantType, int]]:
    from worker.models.checkpoint import open_base_model
    from worker.models.gguf.tensors import TensorSpec
    from worker.models.gguf.types import GGMLType
    from worker.models.mixture.model import facts_from_values

    base = open_base_model(path, allowed_roots=allowed_roots, as_stored=True)
    plan = _planned(base, ModelPart.MODEL, allowed_roots)
    tensors = [TensorSpec(tensor.name, tensor.shape, GGMLType[tensor.type]) for tensor in plan.tensors]
    facts = facts_from_values(plan.metadata)
    sizes = _predicted(tensors, model=facts)
    return plan.metadata, {quant: size.data_bytes + len(plan.header) for quant, size in sizes.items()}

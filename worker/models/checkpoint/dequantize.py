"""Quantized checkpoints as the plain weights that transformers makes of them, tensor by tensor as they are asked for.

Which formats, and where each is read:

=====================  ==================  ============================================================================
``quant_method``       module              weights
=====================  ==================  ============================================================================
``fp8``                ``scaled``          blocks, rows or a whole weight to a scale
``compressed-tensors`` ``scaled``          formats of one value a byte: float-quantized, naive-quantized, int-quantized
``mxfp4``              ``mxfp4``           experts of gpt-oss
``bitsandbytes``       ``bitsandbytes``    NF4, FP4 (nested scales, too), 8-bit rows
=====================  ==================  ============================================================================

Everything else is refused by name. Memory: the weight, and a few megabytes of widened pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint.bitsandbytes import read_bitsandbytes
from worker.models.checkpoint.headers import TensorEntry
from worker.models.checkpoint.mxfp4 import read_mxfp4
from worker.models.checkpoint.scaled import read_compressed_tensors, read_fp8
from worker.models.checkpoint.unpacking import SIXTEEN_BIT, Read, Unpacking, WeightRecipe, model_dtype

_SETTINGS = "quantization_config"
_READERS: Mapping[str, Callable[[Unpacking], None]] = {
    "fp8": read_fp8,
    "compressed-tensors": read_compressed_tensors,
    "mxfp4": read_mxfp4,
    "bitsandbytes": read_bitsandbytes,
}
READ_METHODS = frozenset(_READERS)
"""Methods whose weights are read as plain ones."""


def refuse_method(directory: Path, method: str) -> NoReturn:
    """Refuse a checkpoint whose weights are quantized with a method that is not read.

    Raises:
        PackagingError: ``base_model_quantized``.
    """
    raise PackagingError(
        ErrorCode.BASE_MODEL_QUANTIZED,
        f"{directory} holds weights quantized with {method}, which are not read; those of "
        f"{', '.join(sorted(READ_METHODS))} are",
        remedy=f"{SIXTEEN_BIT} An adapter that was trained on the quantized model merges into it.",
        fields={"quant_method": method},
    )


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """``quantization_config`` of the model or of its text part; None where there is none."""
    for part in (config, config.get("text_config")):
        settings = part.get(_SETTINGS) if isinstance(part, Mapping) else None
        if isinstance(settings, Mapping):
            return settings
    return None


def unpack(
    directory: Path, method: str, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry], read: Read
) -> tuple[dict[str, Any], dict[str, TensorEntry], dict[str, WeightRecipe]]:
    """The checkpoint as it would be unquantized.

    Args:
        directory: For messages.
        method: One of :data:`READ_METHODS`.
        config: ``config.json``.
        tensors: What the files hold.
        read: Maps a stored tensor.

    Returns:
        ``config.json`` without its quantization, the weights, and how those that have to be made are made.

    Raises:
        PackagingError: ``base_model_quantized``, naming the tensor, for scales that are missing or of another shape.
    """
    settings = quantization_settings(config) or {}
    unpacking = Unpacking(directory, method, settings, model_dtype(config), tensors, read)
    _READERS[method](unpacking)
    weights, recipes = unpacking.finish()
    plain = {key: value for key, value in config.items() if key != _SETTINGS}
    text = plain.get("text_config")
    if isinstance(text, dict):
        plain["text_config"] = {key: value for key, value in text.items() if key != _SETTINGS}
    return plain, weights, recipes

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

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint.bitsandbytes import BITSANDBYTES_ENDS, read_bitsandbytes
from worker.models.checkpoint.headers import TensorEntry
from worker.models.checkpoint.mapping import StoredTensors
from worker.models.checkpoint.mxfp4 import read_mxfp4
from worker.models.checkpoint.scaled import read_compressed_tensors, read_fp8
from worker.models.checkpoint.unpacking import SIXTEEN_BIT, Unpacking, WeightRecipe, model_dtype

_SETTINGS = "quantization_config"
_READERS: Mapping[str, Callable[[Unpacking], None]] = {
    "fp8": read_fp8,
    "compressed-tensors": read_compressed_tensors,
    "mxfp4": read_mxfp4,
    "bitsandbytes": read_bitsandbytes,
}
DEQUANTIZED_BY_CONVERTER = frozenset({"fp8", "mxfp4", "compressed-tensors", "modelopt", "bitnet"})
"""Methods whose weights upstream's converter turns back into floats by itself."""

_SCALE = re.compile(r"(?<=\.weight)_scale(_inv|_2)?$")
# ends of names that only tensors of a quantized checkpoint have, also where config.json does not say so
_ENDS = {**dict.fromkeys(BITSANDBYTES_ENDS, "bitsandbytes"), ".qzeros": "gptq or awq"}


def quant_method(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> str | None:
    """How a checkpoint is quantized, by its config or else by the names of its tensors; None where it is not.

    Raises:
        PackagingError: ``base_model_quantized`` for scales beside weights that no config explains.
    """
    settings = quantization_settings(config)
    if settings is not None:
        method = settings.get("quant_method")
        if isinstance(method, str):
            return method
        # old bitsandbytes configs only have the switches
        return "bitsandbytes" if "load_in_4bit" in settings or "load_in_8bit" in settings else "unknown"
    by_names = next((method for name in tensors for end, method in _ENDS.items() if name.endswith(end)), None)
    if by_names is None:
        _refuse_left_scales(tensors)
    return by_names


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """``quantization_config`` of the model or of its text part; None where there is none."""
    for part in (config, config.get("text_config")):
        settings = part.get(_SETTINGS) if isinstance(part, Mapping) else None
        if isinstance(settings, Mapping):
            return settings
    return None


def unpack(
    directory: Path, method: str, config: Mapping[str, Any], stored: StoredTensors
) -> tuple[dict[str, Any], dict[str, TensorEntry], dict[str, WeightRecipe]]:
    """The checkpoint as it would be unquantized.

    Args:
        directory: For messages.
        method: As :func:`quant_method` tells it.
        config: ``config.json``.
        stored: What the files hold.

    Returns:
        ``config.json`` without its quantization, the weights, and how those that have to be made are made.

    Raises:
        PackagingError: ``base_model_quantized``, naming a method that is not read, or the tensor whose scales are
            missing or of another shape.
    """
    if method not in _READERS:
        raise PackagingError(
            ErrorCode.BASE_MODEL_QUANTIZED,
            f"{directory} holds weights quantized with {method}, which are not read; those of "
            f"{', '.join(sorted(_READERS))} are",
            remedy=f"{SIXTEEN_BIT} An adapter that was trained on the quantized model merges into it.",
            fields={"quant_method": method},
        )
    settings = quantization_settings(config) or {}
    unpacking = Unpacking(directory, method, settings, model_dtype(config), stored.entries, stored.read)
    _READERS[method](unpacking)
    weights, recipes = unpacking.finish()
    plain = {key: value for key, value in config.items() if key != _SETTINGS}
    text = plain.get("text_config")
    if isinstance(text, dict):
        plain["text_config"] = {key: value for key, value in text.items() if key != _SETTINGS}
    return plain, weights, recipes


def _refuse_left_scales(tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse weights beside scales that no config explains, as a "16-bit" save of an FP8 model leaves them.

    Raises:
        PackagingError: ``base_model_quantized``, naming weight and scale.
    """
    scale = next((name for name in tensors if _SCALE.search(name) and _SCALE.sub("", name) in tensors), None)
    if scale is None:
        return
    weight = tensors[_SCALE.sub("", scale)]
    raise PackagingError(
        ErrorCode.BASE_MODEL_QUANTIZED,
        f"{weight.file.parent}: {weight.name} is stored as {weight.dtype} with its scale {scale} beside it, but "
        "config.json has no quantization_config: read as they are, the weights would be wrong by the scale",
        remedy="Use the 16-bit model; or put the quantization_config that the weights were saved with back into "
        "config.json; or, if they are multiplied out already, save them without the scales.",
        fields={"quant_method": "unknown", "tensor": weight.name, "dtype": weight.dtype},
    )

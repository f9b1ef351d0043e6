"""What it takes to show the weights of a quantized checkpoint as plain ones: which are made, of what, and what is left.

A reader of one format walks the stored tensors, tells an :class:`Unpacking` of every weight it can make, and is done.
Whatever stays without an explanation is refused here by name. Formats: ``scaled``, ``mxfp4``, ``bitsandbytes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint.headers import FEW_BITS, TensorEntry

if TYPE_CHECKING:
    import torch

Read = Callable[[str], "torch.Tensor"]
"""Maps a stored tensor."""

CHUNK_ELEMENTS = 1 << 22
"""Weights worked on at a time, which bounds the widened copies."""

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
SIXTEEN_BIT = "Use the 16-bit model that it was quantized from."


class WeightRecipe(Protocol):
    """How one weight is made of stored tensors. Pure and thread-safe."""

    def make(self, read: Read) -> torch.Tensor:
        """The weight, in the shape and dtype of its entry."""


@dataclass
class Unpacking:
    """The stored tensors of one checkpoint, and what has been found to make of them.

    Attributes:
        directory: The checkpoint.
        method: ``quant_method``.
        settings: ``quantization_config``.
        dtype: Safetensors name of the dtype in which transformers would hold the weights.
        tensors: Every stored tensor.
        read: Maps one of them.
        made: Stored tensor -> the weight that stands in its place, and how it is made.
        used: Stored tensors that weights are made of, or that only matter while a model runs.
    """

    directory: Path
    method: str
    settings: Mapping[str, Any]
    dtype: str
    tensors: Mapping[str, TensorEntry]
    read: Read
    made: dict[str, tuple[TensorEntry, WeightRecipe]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def add(self, stored: str, entry: TensorEntry, recipe: WeightRecipe, *parts: str) -> None:
        """Have the weight ``entry`` stand where ``stored`` does, made of it and ``parts``."""
        self.made[stored] = (entry, recipe)
        self.used.update((stored, *parts))

    def weight(self, stored: str, shape: tuple[int, ...], *, name: str = "", dtype: str = "") -> TensorEntry:
        """The entry of a weight made of ``stored``: where the bytes lie is the stored tensor's."""
        return replace(self.tensors[stored], name=name or stored, shape=shape, dtype=dtype or self.dtype)

    def refuse(self, name: str, fact: str, remedy: str = SIXTEEN_BIT) -> NoReturn:
        """Say what is wrong with tensor ``name``.

        Raises:
            PackagingError: ``base_model_quantized``.
        """
        entry = self.tensors.get(name)
        raise PackagingError(
            ErrorCode.BASE_MODEL_QUANTIZED,
            f"{self.directory}: {name} {fact}",
            remedy=remedy,
            fields={"quant_method": self.method, "tensor": name, "dtype": entry.dtype if entry else ""},
        )

    def finish(self) -> tuple[dict[str, TensorEntry], dict[str, WeightRecipe]]:
        """The weights in the order of the file, and how those that are not stored as such are made.

        Raises:
            PackagingError: ``base_model_quantized`` where a packed tensor is left that nothing explains.
        """
        weights: dict[str, TensorEntry] = {}
        recipes: dict[str, WeightRecipe] = {}
        for name, stored in self.tensors.items():
            if name in self.made:
                entry, recipe = self.made[name]
                if entry.name in self.tensors and entry.name != name:
                    self.refuse(name, f"is packed, and {entry.name} is stored beside it")
                weights[entry.name], recipes[entry.name] = entry, recipe
            elif name not in self.used:
                if stored.dtype in FEW_BITS:
                    self.refuse(
                        name,
                        f"is stored as {stored.dtype}, and the scales that {self.method} keeps for it are not there",
                        f"Fetch the model again, whole. {SIXTEEN_BIT}",
                    )
                weights[name] = stored
        return weights, recipes


def model_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that transformers loads a model in: its config's, of the whole model or else of its text part."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            value = part.get(key)
            if isinstance(value, str) and value.removeprefix("torch.") in _DTYPES:
                return _DTYPES[value.removeprefix("torch.")]
    return "BF16"


def named_dtype(value: object) -> str | None:
    """Safetensors name of a dtype written as torch or a config writes it; None for another."""
    return _DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else None

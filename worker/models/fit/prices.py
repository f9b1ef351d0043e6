"""The price list: what each tensor costs in bytes and loses in KLD in each type. Data only, and its JSON form.

A KLD here is a prediction in nats, per token of the text that the sensitivities were gathered on, of one tensor's
change alone; those of different tensors add up. Only tensors that llama-quantize would quantize are listed; all others
keep the type that it gives them whatever the quant type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

_VERSION = 1


@dataclass(frozen=True)
class TensorPrice:
    """One tensor in every type that it may take.

    Attributes:
        name: GGUF name.
        shape: In ggml order: ``shape[0]`` is the row length; a third extent counts experts.
        bytes_of: ggml type name (``Q4_K``, ``F16``) -> bytes of the tensor's data, without padding.
        kld_of: The same types -> predicted mean KLD in nats.
        error_of: Type -> standard error of its KLD, where only a sample of the rows was tried; absent is exact.
    """

    name: str
    shape: tuple[int, ...]
    bytes_of: Mapping[str, int]
    kld_of: Mapping[str, float]
    error_of: Mapping[str, float] = field(default_factory=dict)

    def only(self, types: Collection[str]) -> TensorPrice:
        """The same tensor with the prices of some types."""
        return TensorPrice(
            self.name,
            self.shape,
            {name: size for name, size in self.bytes_of.items() if name in types},
            {name: kld for name, kld in self.kld_of.items() if name in types},
            {name: error for name, error in self.error_of.items() if name in types},
        )


@dataclass(frozen=True)
class Prices:
    """The price list of a model.

    Attributes:
        tensors: In the order of the file.
    """

    tensors: tuple[TensorPrice, ...]

    def to_json(self) -> str:
        """One JSON document; the same list always gives the same text."""
        rows = [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "bytes": dict(tensor.bytes_of),
                "kld": dict(tensor.kld_of),
                "error": dict(tensor.error_of),
            }
            for tensor in self.tensors
        ]
        return json.dumps({"version": _VERSION, "tensors": rows}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Prices:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: for anything else.
        """
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            raise ValueError("no price list of this version")
        try:
            return cls(tuple(_read(row) for row in document["tensors"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no price list: {error!r}") from error


def _read(row: Any) -> TensorPrice:
    price = TensorPrice(
        name=str(row["name"]),
        shape=tuple(int(extent) for extent in row["shape"]),
        bytes_of={str(name): int(value) for name, value in row["bytes"].items()},
        kld_of={str(name): float(value) for name, value in row["kld"].items()},
        error_of={str(name): float(value) for name, value in row["error"].items()},
    )
    if price.bytes_of.keys() != price.kld_of.keys() or not all(map(math.isfinite, price.kld_of.values())):
        raise ValueError(f"the prices of {price.name} are incomplete")
    return price

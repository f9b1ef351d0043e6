"""The golden block data: rows of numbers, and the exact bytes that ggml turns them into."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType

FOLDER = Path(__file__).parents[2] / "golden"


@dataclass(frozen=True)
class BlockCase:
    """One conversion: input rows, weights, and what ggml made of them."""

    ggml_type: GGMLType
    input_name: str
    weights_name: str | None
    sha256: str

    def __str__(self) -> str:
        return f"{self.ggml_type.name}-{self.input_name}-{self.weights_name or 'none'}"

    @property
    def rows(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(_arrays()[f"in/{self.input_name}"])

    @property
    def weights(self) -> NDArray[np.float32] | None:
        if self.weights_name is None:
            return None
        return np.ascontiguousarray(_arrays()[f"imatrix/{self.weights_name}/{self.rows.shape[1]}"])

    @property
    def first_bytes(self) -> NDArray[np.uint8]:
        """Bytes of the first four rows, for a message that says where a difference is."""
        first: NDArray[np.uint8] = _arrays()[
            f"out/{self.ggml_type.name}/{self.input_name}/{self.weights_name or 'none'}"
        ]
        return first


@cache
def block_cases(ggml_type: GGMLType | None = None) -> list[BlockCase]:
    meta = json.loads((FOLDER / "blocks.json").read_text())
    cases = [
        BlockCase(GGMLType[case["type"]], case["input"], case["imatrix"], case["sha256"]) for case in meta["cases"]
    ]
    return [case for case in cases if ggml_type in (None, case.ggml_type)]


@cache
def _arrays() -> dict[str, Any]:
    with np.load(FOLDER / "blocks.npz") as stored:
        return dict(stored)

"""Does a file embed and rank as the trained model does? What is asked, how both answers are compared, and the bounds.

Encoders write nothing, so a file is held to transformers: cosine of the two vectors of each text, and the order that
both give to pairs of texts or to documents. Bounds: llama.cpp computes in the file's own type, so a file in float32,
float16, bfloat16 or Q8_0 may be off by what rounding makes of it, and is refused beyond; what coarser types lose is
told, with a warning where it changes an order. Orders are compared where the trained model tells the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

PAIRS = (
    ("How do I reset my password?", "Click on 'Forgot password' to set a new one."),
    ("The capital of France is Paris.", "Paris is the capital city of France."),
    ("A man is playing a guitar on stage.", "Stock prices fell sharply on Monday, by 345 points."),
    ("大海是蓝色的。", "The sea is blue."),
    ("def add(a, b): return a + b", "A function that returns the sum of two numbers."),
    ("The sun rises in the east.", "The sun does not rise in the west, does it?"),
)
"""A query and a text that may answer it, each; embedded as pairs, and ranked as documents of the first query."""
LEAST_COSINE = 0.995
"""Of a file's vector with the trained model's; random models of two layers in 16 bits stay above 0.999."""
CLOSE_SCORES = 0.02
"""Difference of two scores, as a share of one plus the larger of them, that rounding may make."""
TOLD_APART = 0.01
"""Difference of two cosines, or of two scores as above, from which on an order must be the trained model's."""
FINE_TYPES = frozenset({"F32", "F16", "BF16", "Q8_0"})
"""Types of tensors with which a file is held to the bounds."""


@dataclass(frozen=True)
class Likeness:
    """How a file's answers compare.

    Attributes:
        least: Least cosine of two vectors of one text; of scores, one less the largest difference as a share.
        in_order: Whether pairs, or documents, come in the trained model's order.
    """

    least: float
    in_order: bool

    def to_json(self) -> dict[str, float | bool]:
        """For the manifest."""
        return {"least": round(self.least, 6), "in_order": self.in_order}


def compare_vectors(trained: Sequence[Sequence[float]], read: Sequence[Sequence[float]]) -> Likeness:
    """Compare vectors of the texts of :data:`PAIRS`, query and text in turns; any length of a vector will do.

    Raises:
        ValueError: the vectors of the two are of different lengths, or not as many.
    """
    ours, theirs = _unit(trained), _unit(read)
    if ours.shape != theirs.shape:
        raise ValueError(f"vectors of {theirs.shape[-1]} numbers, where the trained model gives {ours.shape[-1]}")
    least = float((ours * theirs).sum(1).min())
    expected, given = ((unit[0::2] * unit[1::2]).sum(1) for unit in (ours, theirs))
    return Likeness(least, same_order(expected.tolist(), given.tolist(), TOLD_APART))


def compare_scores(trained: Sequence[float], read: Sequence[float]) -> Likeness:
    """Compare scores of the same documents, one each."""
    scale = 1.0 + max(map(abs, trained))
    off = max(abs(ours - theirs) for ours, theirs in zip(trained, read, strict=True)) / scale
    return Likeness(1.0 - off, same_order(trained, read, TOLD_APART * scale))


def same_order(trained: Sequence[float], read: Sequence[float], apart: float) -> bool:
    """Whether whatever the first tells apart by more than a bound comes in the same order in the second."""
    return all(
        (trained[first] - trained[second]) * (read[first] - read[second]) > 0
        for first, second in combinations(range(len(trained)), 2)
        if abs(trained[first] - trained[second]) > apart
    )


def _unit(vectors: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = np.asarray(vectors, np.float64)
    if matrix.ndim != 2:
        raise ValueError("vectors of different lengths")
    unit: NDArray[np.float64] = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-30)
    return unit

"""Float conversions with NumPy: F16 and BF16 to float32 and back, and the search for NaN and infinity.

Rounding is to nearest even, as in ggml. A NaN keeps its sign and becomes ``0x7E00`` in F16 (ggml drops the payload),
and is made quiet in BF16. Arrays are one-dimensional and C-contiguous; a 16-bit float is its bits, ``uint16``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 16
"""Elements handled at a time: temporaries stay in the second-level cache."""


def widen_f16(source: NDArray[np.uint16], target: NDArray[np.float32]) -> None:
    """F16 to float32; exact."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        np.copyto(target, source.view(np.float16))


def widen_bf16(source: NDArray[np.uint16], target: NDArray[np.float32]) -> None:
    """BF16 to float32; exact: the bits are the upper half."""
    halves = target.view(np.uint16).reshape(-1, 2)
    halves[:, 0] = 0
    halves[:, 1] = source


def narrow_f16(source: NDArray[np.float32], target: NDArray[np.uint16]) -> None:
    """float32 to F16; beyond 65504 it becomes infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(target.view(np.float16), source, casting="same_kind")
    for start in range(0, source.size, CHUNK):
        part = source[start : start + CHUNK]
        nan = np.isnan(part)
        if nan.any():
            sign = part.view(np.uint32)[nan] >> 16 & 0x8000
            target[start : start + CHUNK][nan] = (sign | 0x7E00).astype(np.uint16)


def narrow_bf16(source: NDArray[np.float32], target: NDArray[np.uint16]) -> None:
    """float32 to BF16."""
    for start in range(0, source.size, CHUNK):
        bits = source[start : start + CHUNK].view(np.uint32)
        upper = bits >> 16
        rounded = (bits + (np.uint32(0x7FFF) + (upper & 1))) >> 16
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        target[start : start + CHUNK] = np.where(nan, upper | 64, rounded)


def find_non_finite(values: NDArray[np.float32]) -> int:
    """Position of the first NaN or infinity, or -1."""
    for start in range(0, values.size, CHUNK):
        finite = np.isfinite(values[start : start + CHUNK])
        if not finite.all():
            return start + int(np.argmin(finite))
    return -1

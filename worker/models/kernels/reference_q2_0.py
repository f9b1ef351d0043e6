"""Q2_0 with NumPy: the one type of ggml (llama.cpp b11434) that ``libgguf`` does not know."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType
from worker.models.kernels.floats import narrow_f16

LENGTH = GGMLType.Q2_0.block_length
_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)


def quantize_q2_0(rows: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Quantize ``float32 (n_rows, row_length)`` into ``uint8 (n_rows, row_bytes)``, both C-contiguous."""
    blocks = rows.reshape(-1, LENGTH)
    target = out.reshape(-1, GGMLType.Q2_0.block_bytes)
    largest = np.abs(blocks).max(axis=1)
    halves = np.empty(len(blocks), np.uint16)
    narrow_f16(largest, halves)
    target[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    with np.errstate(all="ignore"):
        inverse = np.where(largest > 0, np.float32(1) / largest, np.float32(0)).astype(np.float32)
        scaled = blocks * inverse[:, None]
    # roundf, and the lowest integer for what is no integer's size
    rounded = np.where(np.isfinite(scaled), np.trunc(scaled + np.copysign(np.float32(0.49999997), scaled)), -1)
    levels = (rounded.astype(np.int64) + 1).clip(0, 3).astype(np.uint8)
    target[:, 2:] = np.bitwise_or.reduce(levels.reshape(len(blocks), -1, 4) << _SHIFTS, axis=2)


def dequantize_q2_0(data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decode ``uint8 (n_rows, row_bytes)`` into ``float32 (n_rows, row_length)``; both C-contiguous."""
    blocks = data.reshape(-1, GGMLType.Q2_0.block_bytes)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    levels = (blocks[:, 2:, None] >> _SHIFTS & 3).reshape(len(blocks), LENGTH)
    np.multiply(levels.astype(np.float32) - np.float32(1), scales, out=out.reshape(-1, LENGTH))

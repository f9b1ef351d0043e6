"""IQ1_M with NumPy: the one type where ``libgguf`` and ggml (llama.cpp b11434) give different bytes.

A block of 256 holds 16 sub-blocks of 16. Every element of a sub-block becomes one of three values, ``-1, 0, 1`` plus an
offset of 1/8 whose sign each half of 8 chooses for itself. Sorted, the elements fall into three runs; all pairs of run
limits and all four sign pairs are tried, and the one with the least weighted error wins. The halves are then moved to
points of the grid.

All sub-blocks are computed side by side. Each goes through ggml's float32 operations in ggml's order, element after
element where ggml sums, so the bytes are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType
from worker.models.kernels.floats import narrow_f16
from worker.models.kernels.grids import grid_of

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]

SUB_BLOCK = 16


class SubBlocks(NamedTuple):
    """Sub-blocks and the weights of their elements' squared errors, both ``(n, 16)``."""

    values: F32
    weight: F32


SMALLEST = np.float32(1e-7)
"""A sub-block whose largest magnitude is below this becomes all zero."""
SCALE_FACTOR = np.float32(1.1125)
"""ggml's empirical correction of the block scale."""
CHUNK_BLOCKS = 512
_one = np.float32(1)
VALUES = np.array([[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]], np.float32)
"""The three values, with a positive and with a negative offset."""


def quantize_iq1_m(rows: F32, out: NDArray[np.uint8], weights: F32 | None) -> None:
    """Quantize ``float32 (n_rows, row_length)`` into ``uint8 (n_rows, row_bytes)``; weights are ``(row_length,)``."""
    blocks = rows.reshape(-1, 256)
    targets = out.reshape(-1, GGMLType.IQ1_M.block_bytes)
    per_row = rows.shape[1] // 256
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        part = blocks[start : start + CHUNK_BLOCKS]
        part_weights = None
        if weights is not None:
            part_weights = weights.reshape(-1, 256)[np.arange(start, start + len(part)) % per_row]
        with np.errstate(all="ignore"):
            _quantize_blocks(part, targets[start : start + CHUNK_BLOCKS], part_weights)


def _quantize_blocks(blocks: F32, out: NDArray[np.uint8], importance: F32 | None) -> None:
    n_blocks = len(blocks)
    weight = _element_weights(blocks, importance).reshape(-1, SUB_BLOCK)
    parts = SubBlocks(blocks.reshape(-1, SUB_BLOCK), weight)
    levels, scale, signs, split_exists = _best_split(parts)
    points, scale = _to_grid(parts, levels, scale, signs)
    points[~split_exists], scale[~split_exists], signs[~split_exists] = 0, 0, 0

    scales = scale.reshape(n_blocks, 16)
    largest = scales.max(1)
    step = largest / np.float32(15)
    inverse = _one / step
    multiple = _nearest_int(np.float32(0.5) * (inverse[:, None] * scales - _one))
    multiple = np.clip(multiple, 0, 7).reshape(-1)
    factor = (2 * multiple + 1).astype(np.float32)
    fit = _block_scale(parts, _quants(points, _offset_sign(signs)) * factor[:, None], step)
    _pack(out, points, signs, multiple, fit, used=largest > 0)


def _element_weights(blocks: F32, importance: F32 | None) -> F32:
    """Weight of every element's squared error: importance times a blend of the block's and its own magnitude."""
    squares = blocks * blocks
    if importance is None:
        return squares
    total = np.zeros(len(blocks), np.float32)
    for i in range(256):
        total = total + squares[:, i]
    sigma2 = np.float32(2) * total / np.float32(256)
    blended: F32 = importance * np.sqrt(sigma2[:, None] + squares)
    return blended


def _best_split(parts: SubBlocks) -> tuple[Ints, F32, Ints, NDArray[np.bool_]]:
    """The best run limits: levels ``(n, 16)`` of 0..2, scale, sign pair 0..3, and whether there is one at all."""
    n = len(parts.values)
    order = np.argsort(parts.values, axis=1, kind="stable")
    sums_x, sums_w = _prefix_sums(parts, order)
    score = np.full(n, np.finfo(np.float32).min)
    largest: F32 = np.abs(parts.values).max(1)
    scale = largest.copy()
    first, second, signs = np.full(n, -1), np.full(n, -1), np.full(n, -1)
    for i in range(SUB_BLOCK + 1):
        for j in range(i, SUB_BLOCK + 1):
            for pair, (qx, q2) in enumerate(_split_sums(sums_x, sums_w, i, j)):
                better = (q2 > 0) & (qx * qx > score * q2)
                new_scale = qx / q2
                scale = np.where(better, new_scale, scale)
                score = np.where(better, new_scale * qx, score)
                first, second, signs = (
                    np.where(better, new, old) for new, old in ((i, first), (j, second), (pair, signs))
                )
    rank = np.argsort(order, axis=1, kind="stable")
    levels = (rank >= first[:, None]).astype(np.int64) + (rank >= second[:, None])
    mirrored = scale < 0
    levels = np.where(mirrored[:, None], 2 - levels, levels)
    signs = np.where(mirrored, 3 - signs, signs)
    return levels, np.where(mirrored, -scale, scale), signs, (signs >= 0) & (first >= 0) & (largest >= SMALLEST)


def _prefix_sums(parts: SubBlocks, order: Ints) -> tuple[F32, F32]:
    """Sums over the sorted elements of each half: ``(half, 17, n)``, of weight times value and of weight."""
    n = len(order)
    sums_x, sums_w = np.zeros((2, SUB_BLOCK + 1, n), np.float32), np.zeros((2, SUB_BLOCK + 1, n), np.float32)
    lanes = np.arange(n)
    for i in range(SUB_BLOCK):
        element = order[:, i]
        w = parts.weight[lanes, element]
        x = w * parts.values[lanes, element]
        for half in range(2):
            mine = (element >= 8) == (half == 1)
            sums_x[half, i + 1] = np.where(mine, sums_x[half, i] + x, sums_x[half, i])
            sums_w[half, i + 1] = np.where(mine, sums_w[half, i] + w, sums_w[half, i])
    return sums_x, sums_w


def _split_sums(sums_x: F32, sums_w: F32, i: int, j: int) -> list[tuple[F32, F32]]:
    """Sums of weight * value * quant and weight * quant**2 for limits ``i`` and ``j``, for the four sign pairs."""
    by_sign = []
    for low, mid, high in VALUES:
        qx, q2 = [], []
        for half in range(2):
            x, w = sums_x[half], sums_w[half]
            qx.append(x[-1] * high - (x[i] + x[j]))
            q2.append(w[-1] * high * high + w[i] * (low * low - mid * mid) + w[j] * (mid * mid - high * high))
        by_sign.append((qx, q2))
    return [(by_sign[a][0][0] + by_sign[b][0][1], by_sign[a][1][0] + by_sign[b][1][1]) for a in (0, 1) for b in (0, 1)]


def _to_grid(parts: SubBlocks, levels: Ints, scale: F32, signs: Ints) -> tuple[Ints, F32]:
    """Move both halves to grid points: indices ``(n, 2)``, and the scale fitted anew where a half had to move."""
    grid = grid_of(GGMLType.IQ1_M)
    points = np.empty((len(levels), 2), np.int64)
    offset_sign = _offset_sign(signs)
    moved = np.zeros(len(levels), bool)
    for half in range(2):
        part = slice(8 * half, 8 * half + 8)
        codes = grid.codes[levels[:, part] @ (3 ** np.arange(8))].astype(np.int64)
        points[:, half] = codes
        for lane in np.flatnonzero(codes < 0):
            near = grid.near(codes[lane])
            fitted = scale[lane] * VALUES[offset_sign[lane, half]][grid.levels[near]]
            points[lane, half] = near[_least_error(fitted, parts.values[lane, part], parts.weight[lane, part])]
        moved |= codes < 0
    qx, q2 = _fit_sums(parts, _quants(points, offset_sign))
    return points, np.where(moved & (qx > 0) & (q2 > 0), qx / q2, scale)


def _least_error(fitted: F32, value: F32, weight: F32) -> int:
    """Row of ``fitted (n, 8)`` with the least weighted squared error; the first of equals."""
    error = np.zeros(len(fitted), np.float32)
    for i in range(8):
        difference = fitted[:, i] - value[i]
        error = error + weight[i] * difference * difference
    return int(np.argmin(error))


def _offset_sign(signs: Ints) -> Ints:
    """Which row of :data:`VALUES` each half uses, ``(n, 2)``, from the sign pair."""
    return np.stack((signs >> 1, signs & 1), axis=1) & 1


def _quants(points: Ints, offset_sign: Ints) -> F32:
    """The 16 values of each sub-block before scaling, ``(n, 16)``."""
    levels = grid_of(GGMLType.IQ1_M).levels[points]
    return VALUES[offset_sign[:, :, None], levels].reshape(-1, SUB_BLOCK)


def _fit_sums(parts: SubBlocks, quants: F32) -> tuple[F32, F32]:
    """Sums of weight * quant * value and weight * quant**2 over the columns, in their order."""
    qx, q2 = np.zeros(len(quants), np.float32), np.zeros(len(quants), np.float32)
    for i in range(quants.shape[1]):
        weighted = parts.weight[:, i] * quants[:, i]
        qx, q2 = qx + weighted * parts.values[:, i], q2 + weighted * quants[:, i]
    return qx, q2


def _block_scale(parts: SubBlocks, quants: F32, step: F32) -> F32:
    """Block scale ``(n_blocks,)`` that fits best with all else decided; ``step`` where nothing weighs anything."""
    shape = (len(step), 256)
    whole = SubBlocks(parts.values.reshape(shape), parts.weight.reshape(shape))
    qx, q2 = _fit_sums(whole, quants.reshape(shape))
    return np.where(q2 > 0, qx / q2, step) * SCALE_FACTOR


def _pack(
    out: NDArray[np.uint8], points: Ints, signs: Ints, multiple: Ints, scale: F32, *, used: NDArray[np.bool_]
) -> None:
    """Write the blocks: 32 bytes of point index, 16 of its upper bits and the signs, 8 of scales.

    Blocks whose scales are all zero are not ``used``: they keep zero scales and no signs.
    """
    n_blocks = len(out)
    out[:, :32] = (points & 255).reshape(n_blocks, 32)
    upper = points >> 8
    sign_bits = np.where(_offset_sign(signs) == 1, [0x08, 0x80], 0).sum(1)
    high = (upper[:, 0] | upper[:, 1] << 4).reshape(n_blocks, 16)
    out[:, 32:48] = high | np.where(used[:, None], sign_bits.reshape(n_blocks, 16), 0)
    half = np.empty(n_blocks, np.uint16)
    narrow_f16(np.ascontiguousarray(scale), half)
    packed = (multiple.reshape(n_blocks, 4, 4) << (3 * np.arange(4))).sum(2) | _scale_nibbles(half)
    out[:, 48:56] = np.where(used[:, None], packed, 0).astype("<u2").view(np.uint8).reshape(n_blocks, 8)


def _scale_nibbles(half: NDArray[np.uint16]) -> Ints:
    """The F16 scale, four bits in the top of each of four 16-bit words, ``(n_blocks, 4)``."""
    return (half[:, None].astype(np.int64) >> (4 * np.arange(4)) & 15) << 12


def _nearest_int(values: F32) -> Ints:
    """Round to nearest even as ggml does, by adding a number whose last bit is worth 1."""
    bits = (values + np.float32(12582912)).view(np.int32) & 0x007FFFFF
    return bits.astype(np.int64) - 0x00400000

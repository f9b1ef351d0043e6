"""A peer of the fit: types by the errors of sampled rows alone, as llama.cpp's pull request 15550 chooses them.

Written anew from that pull request's public source and discussion (``--target-size``, as of autumn 2026) for an
importance matrix of squared inputs, the only kind that llama-imatrix of the pinned release writes. Per tensor and type:
the mean over rows, drawn at even steps, of the squared error weighted by the matrix relative to the row's own weighted
square, without the outermost hundredth at either end, times the number of rows. Entries of the matrix far above their
median are cut for the metric. Errors of the attention's tensors count more the fewer the bits. Then each tensor's
Pareto front, its convex hull, a Lagrangian whose multiplier is divided by a boost of some tensors, and what is left of
the bytes by best gain per byte.

Left out: what needs statistics of activations; clipping of ``ffn_down`` below 3 bits; the cap on single ``ffn_down``
tensors far below their median; rules for experts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.models.fit.prices import Prices
from worker.models.gguf.tensors import TensorInfo
from worker.models.gguf.types import GGMLType
from worker.models.kernels import FLOAT_TYPES, dequantize_rows, quantize_rows, widen_rows
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.source import Source, open_source

_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_o")
_FEW_ROWS, _MOST_ROWS, _TRIMMED = 256, 4096, 0.01
_TAPERED_BITS = 2.2
"""Bits per weight below which ``ffn_down`` is weighed otherwise."""


@dataclass(frozen=True)
class RowErrors:
    """A tensor's errors by type name, of the types that lie on its convex front, the smallest first."""

    name: str
    elements: int
    front: tuple[tuple[str, int, float], ...]
    """Type, bytes, error."""


def row_errors(source: Path, prices: Prices, matrix: ImatrixData) -> dict[str, dict[str, float]]:
    """Errors of every priced tensor in the types that it is priced in; i-quants only where the matrix has an entry."""
    found = {}
    with open_source(source) as opened:
        tensors = {tensor.name: tensor for tensor in opened.tensors}
        for price in prices.tensors:
            kinds = [GGMLType[name] for name in price.kld_of]
            found[price.name] = _errors(opened, tensors[price.name], kinds, matrix)
    return found


def fronts(prices: Prices, errors: Mapping[str, Mapping[str, float]]) -> list[RowErrors]:
    """The fronts of the types that are priced."""
    found = []
    for price in prices.tensors:
        own = {name: error for name, error in errors[price.name].items() if name in price.kld_of}
        points = sorted((price.bytes_of[name], error, name) for name, error in own.items())
        front: list[tuple[str, int, float]] = []
        for size, error, name in points:
            if front and error >= front[-1][2]:
                continue
            while len(front) > 1 and _above(front[-2], front[-1], (name, size, error)):
                front.pop()
            front.append((name, size, error))
        found.append(RowErrors(price.name, int(np.prod(price.shape)), tuple(front)))
    return found


def allocate_by_errors(tensors: Sequence[RowErrors], limit_bytes: int, *, tied: bool) -> dict[str, str]:
    """Types by tensor within the bytes."""
    elements = sum(tensor.elements for tensor in tensors)
    bits = 8 * limit_bytes / elements
    boosts = [_boost(tensor, bits, elements, tied) for tensor in tensors]
    rows = [_tapered(tensor, bits) for tensor in tensors]

    def at(multiplier: float) -> list[int]:
        costs = [
            [error + multiplier / boost * 8 * size for _, size, error in row]
            for row, boost in zip(rows, boosts, strict=True)
        ]
        return [int(np.argmin(cost)) for cost in costs]

    def size_of(picks: Sequence[int]) -> int:
        return sum(row[pick][1] for row, pick in zip(rows, picks, strict=True))

    low, high = 0.0, 1.0
    while size_of(at(high)) > limit_bytes and high < 2.0**60:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size_of(at(middle)) > limit_bytes else (low, middle)
    picks = at(high)
    left = limit_bytes - size_of(picks)
    while True:
        steps = [
            (boost * (row[pick][2] - row[pick + 1][2]) / (row[pick + 1][1] - row[pick][1]), place)
            for place, (row, pick, boost) in enumerate(zip(rows, picks, boosts, strict=True))
            if pick + 1 < len(row) and row[pick + 1][1] - row[pick][1] <= left
        ]
        if not steps:
            return {tensor.name: row[pick][0] for tensor, row, pick in zip(tensors, rows, picks, strict=True)}
        _, place = max(steps)
        left -= rows[place][picks[place] + 1][1] - rows[place][picks[place]][1]
        picks[place] += 1


def kept_errors(path: Path, source: Path, prices: Prices, matrix: ImatrixData) -> dict[str, dict[str, float]]:
    """The errors, from ``path`` where they are there."""
    if not path.is_file():
        path.write_text(json.dumps(row_errors(source, prices, matrix)))
    found: dict[str, dict[str, float]] = json.loads(path.read_text())
    return found


def _errors(source: Source, tensor: TensorInfo, kinds: Sequence[GGMLType], matrix: ImatrixData) -> dict[str, float]:
    weights = matrix.weights_of(tensor)
    errors = dict.fromkeys((kind.name for kind in kinds if weights is not None or not kind.name.startswith("IQ")), 0.0)
    for number in range(tensor.matrix_count):
        own = None if weights is None else weights[number]
        values = _sample(source, tensor, number)
        metric = np.ones(tensor.row_length) if own is None else _cut(own.astype(np.float64))
        squares = np.square(values, dtype=np.float64) @ metric
        for name in errors:
            change = _decoded(GGMLType[name], values, own) - values
            relative = np.square(change, dtype=np.float64) @ metric / np.maximum(squares, 1e-12)
            errors[name] += _trimmed_mean(relative) * tensor.rows_per_matrix
    if any(part in tensor.name for part in _ATTENTION):
        return {name: error * (1 + 0.5 * 2 ** (3 - _bits(tensor, name))) for name, error in errors.items()}
    return errors


def _sample(source: Source, tensor: TensorInfo, number: int) -> NDArray[np.float32]:
    rows = tensor.rows_per_matrix
    budget = (1 << 19) * float(np.clip(np.sqrt(rows / 4096), 0.5, 2)) / tensor.matrix_count
    wanted = max(_FEW_ROWS, min(round(budget / tensor.row_length), rows, _MOST_ROWS))
    count = rows if rows <= 2 * _FEW_ROWS else min(wanted, rows)
    drawn = np.unique(np.round(np.arange(count) * rows / count).astype(int))
    first = number * rows
    raw = np.concatenate([source.read_rows(tensor, first + int(row), 1) for row in drawn if row < rows])
    return widen_rows(tensor.type, raw) if tensor.type in FLOAT_TYPES else dequantize_rows(tensor.type, raw)


def _decoded(kind: GGMLType, values: NDArray[np.float32], weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
    size = values.shape[1] // kind.block_length * kind.block_bytes
    encoded = np.empty((len(values), size), np.uint8)
    quantize_rows(kind, values, encoded, weights)
    return widen_rows(kind, encoded) if kind in FLOAT_TYPES else dequantize_rows(kind, encoded)


def _cut(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entries no higher than four deviations above the median of their logarithms."""
    logarithms = np.log(weights[weights > 0])
    if len(logarithms) < max(8, len(weights) // 2):
        return weights
    median = np.median(logarithms)
    deviation = np.median(np.abs(logarithms - median))
    return np.minimum(weights, np.exp(median + 4 * 1.4826 * deviation)) if deviation > 1e-6 else weights


def _trimmed_mean(values: NDArray[np.float64]) -> float:
    if len(values) < 100:
        return float(values.mean())
    out = int(len(values) * _TRIMMED)
    return float(np.sort(values)[out : len(values) - out].mean())


def _bits(tensor: TensorInfo, name: str) -> float:
    return 8 * tensor.with_type(GGMLType[name]).row_bytes / tensor.row_length


def _above(before: tuple[str, int, float], middle: tuple[str, int, float], after: tuple[str, int, float]) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    return (before[2] - middle[2]) * (after[1] - before[1]) <= (before[2] - after[2]) * (middle[1] - before[1])


def _boost(tensor: RowErrors, bits: float, elements: int, tied: bool) -> float:
    if tensor.name.endswith("ffn_down.weight"):
        return 6.0 if bits >= _TAPERED_BITS else 1.0
    if tensor.name == "output.weight":
        return 3.0
    if "attn_v" in tensor.name:
        return 1.25
    if tied and tensor.name == "token_embd.weight" and bits >= _TAPERED_BITS:
        share = tensor.elements / elements
        return 2.5 if share <= 0.1 else max(1.25, 2.5 * (1 - 3 * (share - 0.1)))
    return 1.0


def _tapered(tensor: RowErrors, bits: float) -> tuple[tuple[str, int, float], ...]:
    if bits >= _TAPERED_BITS or not tensor.name.endswith("ffn_down.weight"):
        return tensor.front
    return tuple(
        (name, size, error * (1 + 2 ** (3 - 8 * size / tensor.elements))) for name, size, error in tensor.front
    )

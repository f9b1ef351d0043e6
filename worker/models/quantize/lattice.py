"""Blocks that quantization-aware training left on a lattice: found from the weights, and hit exactly.

Such a checkpoint holds ``round(d * q)`` in its own dtype: whole levels q from -8 to 7 and a scale d for every 32
weights in a row (Gemma's QAT for Q4_0), or for a multiple of them (symmetric int4 groups). llama-quantize takes d from
the largest weight alone, as ``largest / -8``. Where a block does not reach its lowest level the levels are others then,
and where rounding to bfloat16 moved that weight, others come out one step off. Here the levels are read off the block;
each weight then bounds d by the numbers that round to it, and d is taken from where all these intervals meet.

A block that llama-quantize's way holds exactly keeps its bytes, and so does one that lies on no such lattice. MXFP4
needs no search: its power of two is always right for weights that lie on it, so it is only counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType
from worker.models.kernels import dequantize_rows, quantize_rows, widen_rows

BLOCK = 32
_LOWEST = 8  # magnitude of the lowest level; the highest is one less
_CHUNK_BLOCKS = 4096  # bounds the float64 copies: 1 MiB each
_SAMPLE_BLOCKS = 64
_MOST_NAMED = 20
_JUST_INSIDE = 1 - 2.0**-10  # products of a level and a float16 lie further from halfway, or on it
_EXPONENT = np.uint32(0x7F800000)
_NEAR = 0.07
"""How far from whole a weight over the scale may be: two roundings to 8 bits, at level 8."""
_T = GGMLType
_DTYPES = {_T.F32: (24, -126), _T.F16: (11, -14), _T.BF16: (8, -126)}
"""Bits of the significand, and the exponent of the smallest normal number."""

Halves = NDArray[np.float16]
Levels = NDArray[np.int8]
Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exactness:
    """How much of a tensor, or of a file, is what the checkpoint holds.

    Attributes:
        weights: Weights that were compared.
        exact: Those that the file gives back, rounded to the checkpoint's dtype, as they are there.
        stock: The same of what llama-quantize writes.
        on_lattice: Those in blocks on a lattice, also where no 16-bit scale is exact.
    """

    weights: int = 0
    exact: int = 0
    stock: int = 0
    on_lattice: int = 0

    def __add__(self, other: Exactness) -> Exactness:
        return Exactness(
            self.weights + other.weights,
            self.exact + other.exact,
            self.stock + other.stock,
            self.on_lattice + other.on_lattice,
        )


def exactness_facts(exactness: Mapping[str, Exactness]) -> dict[str, Any]:
    """A file's exactness in plain JSON: the sums, and how many weights differ in which tensors, the first twenty.

    Args:
        exactness: By tensor.
    """
    inexact = {name: counts.weights - counts.exact for name, counts in exactness.items()}
    inexact = {name: differing for name, differing in inexact.items() if differing}
    return {
        **asdict(sum(exactness.values(), Exactness())),
        "tensors": len(exactness),
        "exact_tensors": len(exactness) - len(inexact),
        "inexact": dict(list(inexact.items())[:_MOST_NAMED]),
    }


def _nibbles(levels: Levels) -> NDArray[np.uint8]:
    """(n, 16) bytes: levels from 0 on, the second half of a block above the first."""
    unsigned = (levels + np.int8(_LOWEST)).view(np.uint8)
    low, high = unsigned[:, : BLOCK // 2], unsigned[:, BLOCK // 2 :]
    return low | np.left_shift(high, 4, dtype=np.uint8)


def _as_q4_0(scales: Halves, levels: Levels) -> list[NDArray[Any]]:
    return [scales, _nibbles(levels)]


def _as_q4_1(scales: Halves, levels: Levels) -> list[NDArray[Any]]:
    """``d * q + m``, with m that of the lowest level."""
    return [scales, (scales * np.float16(-_LOWEST)).astype(np.float16), _nibbles(levels)]


def _as_q8_0(scales: Halves, levels: Levels) -> list[NDArray[Any]]:
    return [scales, levels]


_FORMS: Mapping[GGMLType, Callable[[Halves, Levels], list[NDArray[Any]]]] = {
    _T.Q4_0: _as_q4_0,
    _T.Q4_1: _as_q4_1,
    _T.Q8_0: _as_q8_0,
}
"""Types whose blocks can hold a scale and whole levels -8 to 7, and the parts of such a block in order."""
COUNTED = frozenset(_FORMS) | {_T.MXFP4}
"""Types that can hold weights of a lattice exactly."""


def hit_lattice(
    target: GGMLType, rows: NDArray[np.float32], data: NDArray[np.uint8], source_type: GGMLType
) -> Exactness:
    """Make blocks that lie on a lattice exact, and count.

    Args:
        target: One of :data:`COUNTED`.
        rows: The weights, ``float32 (n_rows, row_length)``, finite.
        data: What the kernel made of them, ``uint8 (n_rows, row_bytes)``; blocks are replaced in it.
        source_type: Float type that the rows were widened from.
    """
    dtype = _stored_dtype(rows, source_type)
    held = _given_back(target, data, dtype).reshape(-1, BLOCK)
    weights = rows.reshape(-1, BLOCK)
    same = held == weights
    whole = same.all(1)
    stock = exact = int(np.count_nonzero(same))
    on_lattice = int(np.count_nonzero(whole))
    blocks = data.reshape(len(weights), target.block_bytes)
    missed = np.flatnonzero(~whole) if target in _FORMS else whole[:0]
    for start in range(0, len(missed), _CHUNK_BLOCKS):
        part = missed[start : start + _CHUNK_BLOCKS]
        places, scales, levels = _solve(weights[part], dtype)
        if not len(places):
            continue
        part = part[places]
        on_lattice += len(part)
        made = np.concatenate([_bytes(values) for values in _FORMS[target](scales, levels)], axis=1)
        given = _given_back(target, made, dtype)
        better = _squared(given - weights[part]) < _squared(held[part] - weights[part])
        blocks[part[better]] = made[better]
        exact += int(np.count_nonzero(given[better] == weights[part[better]]))
        exact -= int(np.count_nonzero(same[part[better]]))
    return Exactness(rows.size, exact, stock, on_lattice * BLOCK)


def find_lattice(rows: NDArray[np.float32], source_type: GGMLType) -> GGMLType | None:
    """The type on whose lattice rows lie, seen from a few dozen blocks spread over them: Q4_0, MXFP4 or None.

    Args:
        rows: ``float32 (n_rows, row_length)``, finite.
        source_type: Float type that the rows were widened from.
    """
    if rows.shape[1] % BLOCK or source_type not in _DTYPES:
        return None
    blocks = rows.reshape(-1, BLOCK)
    blocks = blocks[:: max(1, len(blocks) // _SAMPLE_BLOCKS)]
    blocks = np.ascontiguousarray(blocks[np.count_nonzero(blocks, axis=1) > 1])  # others lie on any lattice
    if not len(blocks) or 2 * np.count_nonzero(_few_magnitudes(np.abs(blocks))) < len(blocks):
        return None
    dtype = _stored_dtype(blocks, source_type)
    if 2 * len(_solve(blocks, dtype)[0]) >= len(blocks):
        return _T.Q4_0
    data = np.empty((len(blocks), _T.MXFP4.block_bytes), np.uint8)
    quantize_rows(_T.MXFP4, blocks, data)
    exact = (_given_back(_T.MXFP4, data, dtype) == blocks).all(1)
    return _T.MXFP4 if 2 * np.count_nonzero(exact) >= len(blocks) else None


def _stored_dtype(rows: NDArray[np.float32], source_type: GGMLType) -> GGMLType:
    """The checkpoint's dtype: bfloat16 where every value is one, also where the file to quantize has a wider type."""
    return _T.BF16 if not np.any(rows.view(np.uint32) & np.uint32(0xFFFF)) else source_type


def _given_back(target: GGMLType, data: NDArray[np.uint8], dtype: GGMLType) -> NDArray[np.float32]:
    """What a file holds, rounded to the checkpoint's dtype."""
    values = dequantize_rows(target, data)
    if dtype is _T.F32:
        return values
    narrow = np.empty((len(values), 2 * values.shape[1]), np.uint8)
    with np.errstate(over="ignore"):
        quantize_rows(dtype, values, narrow)
    return widen_rows(dtype, narrow)


def _few_magnitudes(sizes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Blocks with no more magnitudes than a lattice has: a quick look that passes over nearly every other block."""
    ordered = np.sort(sizes, axis=1)
    few: NDArray[np.bool_] = np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1) <= _LOWEST
    return few


def _solve(weights: NDArray[np.float32], dtype: GGMLType) -> tuple[NDArray[np.intp], Halves, Levels]:
    """Places of the blocks that lie on a lattice, their scales ``(n,)`` as a column, and their levels ``(n, 32)``.

    Of several lattices that would do, the finest: its values are the same.
    """
    sizes = np.abs(weights)
    top = sizes.max(1, initial=0.0)
    scales, levels = np.zeros(len(weights), np.float16), np.zeros((len(weights), BLOCK), np.int8)
    left = np.flatnonzero(_few_magnitudes(sizes) & (top > 0))
    for highest in range(_LOWEST, 0, -1):
        if not len(left):
            break
        steps = sizes[left] * (highest / top[left])[:, None]
        whole = np.rint(steps)
        near = (np.abs(steps - whole) <= _NEAR).all(1) & ((whole == 0) == (sizes[left] == 0)).all(1)
        tried = left[near]
        scale, turned = _scales(weights[tried], whole[near], dtype)
        fits = scale != 0
        scales[tried] = scale
        levels[tried[fits]] = whole[near][fits] * np.sign(weights[tried[fits]]) * turned[fits, None]
        left = left[scales[left] == 0]
    places = np.flatnonzero(scales)
    return places, scales[places, None], levels[places]


def _scales(
    weights: NDArray[np.float32], steps: NDArray[np.float32], dtype: GGMLType
) -> tuple[Halves, NDArray[np.float32]]:
    """The scale ``(n,)`` with which levels of these magnitudes round to the weights, 0 where there is none; its sign.

    A scale is negative where a positive weight has the magnitude that only the lowest level has.
    """
    low, high = _intervals(np.abs(weights), dtype)
    none = steps == 0
    steps = np.where(none, np.float32(1), steps)
    least = np.where(none, np.float32(0), low / steps).max(1)
    most = np.where(none, np.float32(np.inf), high / steps).min(1)
    above, below = ((steps == _LOWEST) & side for side in (weights > 0, weights < 0))
    turned = np.where(above.any(1), np.float32(-1), np.float32(1))
    fits = (least <= most) & ~(above.any(1) & below.any(1))
    scale = _scale_between(least, most)
    fits &= (scale > 0) & np.isfinite(scale)
    return np.where(fits, scale * turned.astype(np.float16), np.float16(0)), turned


def _intervals(sizes: NDArray[np.float32], dtype: GGMLType) -> tuple[Floats, Floats]:
    """From where to where numbers round to each magnitude in a dtype."""
    bits, smallest = _DTYPES[dtype]
    raw = sizes.view(np.uint32)
    power = np.maximum((raw & _EXPONENT).view(np.float32), np.float32(2.0**smallest))
    half = (power.astype(np.float64) if dtype is _T.F32 else power) * np.float32(2.0**-bits)
    odd = ((raw >> np.uint32(24 - bits)) & np.uint32(1)).astype(np.bool_)
    half = np.where(odd, half * np.float32(_JUST_INSIDE), half)  # what lies halfway goes to the even one
    below = np.where(raw & ~_EXPONENT, half, half * np.float32(0.5))  # a power of two's lower neighbour is nearer
    return sizes - below, sizes + half


def _scale_between(least: Floats, most: Floats) -> Halves:
    """A float16 between two bounds, one of 8 bits if there is one, which a scale in bfloat16 was; else the nearest."""
    middle = (least.astype(np.float64) + most) / 2
    mantissa, exponent = np.frexp(middle)
    with np.errstate(over="ignore"):
        short = np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float16)
        plain = middle.astype(np.float16)
    fits = (least <= short) & (short <= most)
    return np.where(fits, short, plain)


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).view(np.uint8)


def _squared(errors: NDArray[np.float32]) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.square(errors, dtype=np.float64).sum(1)
    return sums

"""Finds values that are no numbers: NaN and infinity, in floats and in the scales of quantized blocks.

The same judgement as ``ggml_validate_row_data`` of llama.cpp (``ggml-quants.c``), without saying which of the two it
is. A quantized block is bad if one of its float16 scales has all exponent bits set; types whose scales cannot be bad
(integers, NVFP4) never are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import BLOCKS, GGMLType

_T = GGMLType

SCALE_OFFSETS: dict[GGMLType, tuple[int, ...]] = {
    _T.Q4_0: (0,),
    _T.Q4_1: (0, 2),
    _T.Q5_0: (0,),
    _T.Q5_1: (0, 2),
    _T.Q8_0: (0,),
    _T.Q2_K: (80, 82),
    _T.Q3_K: (108,),
    _T.Q4_K: (0, 2),
    _T.Q5_K: (0, 2),
    _T.Q6_K: (208,),
    _T.IQ2_XXS: (0,),
    _T.IQ2_XS: (0,),
    _T.IQ2_S: (0,),
    _T.IQ3_XXS: (0,),
    _T.IQ3_S: (0,),
    _T.IQ1_S: (0,),
    _T.IQ4_NL: (0,),
    _T.IQ4_XS: (0,),
    _T.TQ1_0: (52,),
    _T.TQ2_0: (64,),
    _T.Q1_0: (0,),
    _T.Q2_0: (0,),
}
"""Where in a block the float16 scales and minima stand, in bytes (``ggml-common.h``)."""

_F16_EXPONENT, _BF16_EXPONENT = 0x7C00, 0x7F80
_MXFP4_NAN = 0xFF
_IQ1_M_SCALES = 48
_CHUNK_BYTES = 1 << 16  # keeps temporaries in the cache, and below the size at which each would be mapped anew


def first_not_finite(ggml_type: GGMLType, data: NDArray[np.uint8]) -> int | None:
    """Index of the first bad element (floats) or block (quantized types).

    Args:
        ggml_type: Type of the data.
        data: Contiguous bytes, uint8, any shape; whole blocks.

    Returns:
        The index, or None if all is finite.
    """
    flat = data.reshape(-1)
    step = _CHUNK_BYTES // BLOCKS[ggml_type].size_bytes * BLOCKS[ggml_type].size_bytes
    for start in range(0, flat.size, step):
        bad = _bad(ggml_type, flat[start : start + step])
        if bad is not None and bad.any():
            return start // BLOCKS[ggml_type].size_bytes + int(np.argmax(bad))
    return None


def _bad(ggml_type: GGMLType, flat: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Which elements or blocks are bad; None where the quick look finds none."""
    if ggml_type in (_T.F32, _T.F64):
        values = flat.view(np.float32 if ggml_type is _T.F32 else np.float64)
        bad: NDArray[np.bool_] = ~np.isfinite(values)
        return bad
    if ggml_type in (_T.F16, _T.BF16):
        exponent = _F16_EXPONENT if ggml_type is _T.F16 else _BF16_EXPONENT
        magnitude = flat.view(np.uint16) & 0x7FFF
        return np.greater_equal(magnitude, exponent) if magnitude.size and magnitude.max() >= exponent else None
    if ggml_type is _T.IQ1_M:
        return _bad_f16(_iq1_m_scale(flat))
    if ggml_type is _T.MXFP4:
        return np.equal(flat.reshape(-1, BLOCKS[ggml_type].size_bytes)[:, 0], _MXFP4_NAN)
    if ggml_type is _T.Q8_K:
        return ~np.isfinite(np.ascontiguousarray(flat.reshape(-1, 292)[:, :4]).view(np.float32)[:, 0])
    per_scale = [_bad_f16(_halves(ggml_type, flat, offset)) for offset in SCALE_OFFSETS.get(ggml_type, ())]
    return np.logical_or.reduce(per_scale) if per_scale else None


def _halves(ggml_type: GGMLType, flat: NDArray[np.uint8], offset: int) -> NDArray[np.uint16]:
    """The 16-bit word at ``offset`` of every block, as a view."""
    size = BLOCKS[ggml_type].size_bytes
    return np.ndarray((flat.size // size,), "<u2", flat, offset, (size,))


def _bad_f16(words: NDArray[np.uint16]) -> NDArray[np.bool_]:
    bad: NDArray[np.bool_] = (words & _F16_EXPONENT) == _F16_EXPONENT
    return bad


def _iq1_m_scale(flat: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """IQ1_M spreads its float16 scale over the top four bits of four words."""
    words = [_halves(_T.IQ1_M, flat, _IQ1_M_SCALES + 2 * index) for index in range(4)]
    top = [word >> 12 << (4 * index) for index, word in enumerate(words)]
    return (top[0] | top[1] | top[2] | top[3]).astype(np.uint16)

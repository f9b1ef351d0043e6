"""ggml's tensor types: number, block length and bytes per block. Data, and the arithmetic over it.

Numbers and sizes are those of ggml in llama.cpp b11434 (``ggml.h``, ``ggml-common.h``). Types that appear in no file
(Q8_1 and Q8_K are intermediate forms of matrix products) are listed too, so that a reader can name what it refuses.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class GGMLType(IntEnum):
    """Type of a tensor; the value is the number stored in a GGUF file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block_length(self) -> int:
        """Elements per block; a row's length is a multiple of it."""
        return BLOCKS[self].length

    @property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return BLOCKS[self].size_bytes

    @property
    def is_quantized(self) -> bool:
        """Whether elements share a scale (as in ``ggml_is_quantized``): all types but floats and integers."""
        return self not in PLAIN_TYPES


class BlockSize(NamedTuple):
    """Size of one block of a type."""

    length: int
    size_bytes: int


_T = GGMLType

BLOCKS: dict[GGMLType, BlockSize] = {
    _T.F32: BlockSize(1, 4),
    _T.F16: BlockSize(1, 2),
    _T.BF16: BlockSize(1, 2),
    _T.F64: BlockSize(1, 8),
    _T.I8: BlockSize(1, 1),
    _T.I16: BlockSize(1, 2),
    _T.I32: BlockSize(1, 4),
    _T.I64: BlockSize(1, 8),
    _T.Q4_0: BlockSize(32, 18),
    _T.Q4_1: BlockSize(32, 20),
    _T.Q5_0: BlockSize(32, 22),
    _T.Q5_1: BlockSize(32, 24),
    _T.Q8_0: BlockSize(32, 34),
    _T.Q8_1: BlockSize(32, 36),
    _T.Q2_K: BlockSize(256, 84),
    _T.Q3_K: BlockSize(256, 110),
    _T.Q4_K: BlockSize(256, 144),
    _T.Q5_K: BlockSize(256, 176),
    _T.Q6_K: BlockSize(256, 210),
    _T.Q8_K: BlockSize(256, 292),
    _T.IQ2_XXS: BlockSize(256, 66),
    _T.IQ2_XS: BlockSize(256, 74),
    _T.IQ2_S: BlockSize(256, 82),
    _T.IQ3_XXS: BlockSize(256, 98),
    _T.IQ3_S: BlockSize(256, 110),
    _T.IQ1_S: BlockSize(256, 50),
    _T.IQ1_M: BlockSize(256, 56),
    _T.IQ4_NL: BlockSize(32, 18),
    _T.IQ4_XS: BlockSize(256, 136),
    _T.TQ1_0: BlockSize(256, 54),
    _T.TQ2_0: BlockSize(256, 66),
    _T.MXFP4: BlockSize(32, 17),
    _T.NVFP4: BlockSize(64, 36),
    _T.Q1_0: BlockSize(128, 18),
    _T.Q2_0: BlockSize(64, 18),
}

PLAIN_TYPES = frozenset({_T.F32, _T.F16, _T.BF16, _T.F64, _T.I8, _T.I16, _T.I32, _T.I64})
"""Types without blocks: floats and integers."""


def row_bytes(ggml_type: GGMLType, row_length: int) -> int:
    """Bytes of one row.

    Args:
        ggml_type: Type of the tensor.
        row_length: Elements in the row (``ne[0]``).

    Raises:
        ValueError: If the row is not a whole number of blocks.
    """
    block = BLOCKS[ggml_type]
    blocks, rest = divmod(row_length, block.length)
    if rest:
        raise ValueError(f"a row of {row_length} is not a multiple of the {block.length} of {ggml_type.name}")
    return blocks * block.size_bytes


def tensor_bytes(ggml_type: GGMLType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor's data, without padding. ``shape`` is in ggml order: ``shape[0]`` is the row length."""
    size = row_bytes(ggml_type, shape[0] if shape else 1)
    for extent in shape[1:]:
        size *= extent
    return size

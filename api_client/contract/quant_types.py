"""The quant types: llama.cpp's file type names, with what a person needs to choose among them. Data only.

Bits per weight are those of the whole file for an 8B Llama (llama.cpp's own table); ``file_type`` is the
``general.file_type`` number of llama.cpp's ``llama_ftype``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class QuantType(StrEnum):
    """A llama.cpp file type."""

    Q4_K_M = "Q4_K_M"
    Q5_K_M = "Q5_K_M"
    Q4_K_S = "Q4_K_S"
    Q5_K_S = "Q5_K_S"
    Q3_K_M = "Q3_K_M"
    Q3_K_L = "Q3_K_L"
    Q3_K_S = "Q3_K_S"
    Q6_K = "Q6_K"
    Q2_K = "Q2_K"
    Q2_K_S = "Q2_K_S"
    Q8_0 = "Q8_0"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    IQ4_XS = "IQ4_XS"
    IQ4_NL = "IQ4_NL"
    IQ3_M = "IQ3_M"
    IQ3_S = "IQ3_S"
    IQ3_XS = "IQ3_XS"
    IQ3_XXS = "IQ3_XXS"
    IQ2_M = "IQ2_M"
    IQ2_S = "IQ2_S"
    IQ2_XS = "IQ2_XS"
    IQ2_XXS = "IQ2_XXS"
    IQ1_M = "IQ1_M"
    IQ1_S = "IQ1_S"
    MXFP4_MOE = "MXFP4_MOE"
    TQ2_0 = "TQ2_0"
    TQ1_0 = "TQ1_0"
    Q2_0 = "Q2_0"
    Q1_0 = "Q1_0"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"


ALIASES: dict[str, QuantType] = {"Q3_K": QuantType.Q3_K_M, "Q4_K": QuantType.Q4_K_M, "Q5_K": QuantType.Q5_K_M}
"""Other names that llama-quantize takes."""


class QuantTypeInfo(NamedTuple):
    """One row of the table."""

    family: str
    """``K``, ``legacy``, ``IQ``, ``trained`` (for weights trained on the type's own values) or ``float``."""
    file_type: int
    bits_per_weight: float
    needs_imatrix: bool
    """Whether llama.cpp refuses to make it without an importance matrix (IQ3_XS: only where attention gets IQ3_XXS)."""
    recommended: bool
    quality_rank: int
    """Expected quality, the higher the better; its tens are the class: 7 the original, 0 the worst."""
    description_en: str
    description_zh: str


_Q = QuantType
_I = QuantTypeInfo

QUANT_TYPES: dict[QuantType, QuantTypeInfo] = {
    _Q.Q4_K_M: _I(
        "K", 15, 4.89, False, True, 39, "Default: best balance of size and quality", "默认推荐，平衡体积和质量"
    ),
    _Q.Q5_K_M: _I("K", 17, 5.70, False, True, 49, "Higher quality, very small loss", "追求更高质量，损失极低"),
    _Q.Q4_K_S: _I("K", 14, 4.67, False, False, 38, "4-bit, smaller than Q4_K_M", "4-bit，体积优先"),
    _Q.Q5_K_S: _I("K", 16, 5.57, False, False, 47, "5-bit, smaller than Q5_K_M", "5-bit，质量优先"),
    _Q.Q3_K_M: _I("K", 12, 4.00, False, False, 27, "3-bit, strong compression", "3-bit，极限压缩"),
    _Q.Q3_K_L: _I("K", 13, 4.30, False, False, 29, "3-bit, larger and better than Q3_K_M", "3-bit，压缩与质量折中"),
    _Q.Q3_K_S: _I("K", 11, 3.64, False, False, 24, "Smallest 3-bit K-quant", "最小的 3-bit"),
    _Q.Q6_K: _I("K", 18, 6.56, False, False, 59, "6-bit, close to the original", "6-bit，质量接近原始"),
    _Q.Q2_K: _I("K", 10, 3.16, False, False, 18, "2-bit, clear loss of quality", "2-bit 极限压缩"),
    _Q.Q2_K_S: _I(
        "K",
        21,
        2.97,
        True,
        False,
        16,
        "2-bit, smaller than Q2_K; needs an imatrix",
        "2-bit，比 Q2_K 更小，需要重要性矩阵",
    ),
    _Q.Q8_0: _I("legacy", 7, 8.50, False, True, 69, "8-bit, practically the original", "8-bit 量化，质量接近原始"),
    _Q.Q5_0: _I("legacy", 8, 5.60, False, False, 46, "5-bit, older format", "5-bit 标准量化"),
    _Q.Q5_1: _I("legacy", 9, 6.06, False, False, 48, "5-bit with offset, older format", "5-bit 增强量化"),
    _Q.Q4_0: _I("legacy", 2, 4.66, False, False, 34, "4-bit, older format, fast on simple hardware", "4-bit 标准量化"),
    _Q.Q4_1: _I("legacy", 3, 5.11, False, False, 35, "4-bit with offset, older format", "4-bit 增强量化"),
    _Q.IQ4_XS: _I("IQ", 30, 4.46, False, False, 36, "4-bit non-linear, smaller than Q4_K_S", "智能 4-bit，更小"),
    _Q.IQ4_NL: _I("IQ", 25, 4.68, False, False, 37, "4-bit non-linear, blocks of 32", "非线性 4-bit"),
    _Q.IQ3_M: _I("IQ", 27, 3.76, False, False, 28, "3-bit, medium", "智能 3-bit 中等"),
    _Q.IQ3_S: _I("IQ", 26, 3.66, False, False, 26, "3-bit, small", "智能 3-bit 小型"),
    _Q.IQ3_XS: _I(
        "IQ", 22, 3.50, True, False, 25, "3-bit, extra small; needs an imatrix", "智能 3-bit 更小，需要重要性矩阵"
    ),
    _Q.IQ3_XXS: _I(
        "IQ", 23, 3.25, True, False, 23, "3-bit, smallest; needs an imatrix", "智能 3-bit 最小，需要重要性矩阵"
    ),
    _Q.IQ2_M: _I("IQ", 29, 2.93, True, False, 19, "2-bit, medium; needs an imatrix", "智能 2-bit 中等，需要重要性矩阵"),
    _Q.IQ2_S: _I("IQ", 28, 2.74, True, False, 17, "2-bit, small; needs an imatrix", "智能 2-bit 小型，需要重要性矩阵"),
    _Q.IQ2_XS: _I(
        "IQ", 20, 2.59, True, False, 15, "2-bit, extra small; needs an imatrix", "智能 2-bit 更小，需要重要性矩阵"
    ),
    _Q.IQ2_XXS: _I(
        "IQ", 19, 2.38, True, False, 14, "2-bit, smallest; needs an imatrix", "智能 2-bit 最小，需要重要性矩阵"
    ),
    _Q.IQ1_M: _I("IQ", 31, 2.15, True, False, 9, "1-bit, medium; needs an imatrix", "智能 1-bit 中等，需要重要性矩阵"),
    _Q.IQ1_S: _I("IQ", 24, 2.00, True, False, 8, "1-bit, small; needs an imatrix", "智能 1-bit 小型，需要重要性矩阵"),
    _Q.MXFP4_MOE: _I(
        "trained",
        38,
        8.50,
        False,
        False,
        33,
        "Experts in MXFP4, the rest in Q8_0; for models trained so, as gpt-oss",
        "专家权重用 MXFP4，其余用 Q8_0，适合以此训练的模型（如 gpt-oss）",
    ),
    _Q.TQ2_0: _I(
        "trained",
        37,
        2.52,
        False,
        False,
        4,
        "Ternary, faster than TQ1_0; for models trained on three values, as BitNet",
        "三值，比 TQ1_0 快，仅适合三值训练的模型（如 BitNet）",
    ),
    _Q.TQ1_0: _I(
        "trained",
        36,
        2.19,
        False,
        False,
        3,
        "Ternary, smallest; for models trained on three values, as BitNet",
        "三值，最小，仅适合三值训练的模型（如 BitNet）",
    ),
    _Q.Q2_0: _I(
        "trained",
        41,
        2.68,
        False,
        False,
        2,
        "Ternary, blocks of 64; for models trained on three values",
        "三值，每块 64 个权重，仅适合三值训练的模型",
    ),
    _Q.Q1_0: _I(
        "trained",
        40,
        1.48,
        False,
        False,
        1,
        "Signs alone, blocks of 128; for models trained on two values",
        "只存符号，每块 128 个权重，仅适合二值训练的模型",
    ),
    _Q.F32: _I("float", 0, 32.0, False, False, 77, "32-bit float", "32-bit 浮点（原始精度）"),
    _Q.F16: _I("float", 1, 16.0, False, False, 79, "16-bit float", "16-bit 浮点"),
    _Q.BF16: _I("float", 32, 16.0, False, False, 78, "bfloat16", "BFloat16 格式"),
}

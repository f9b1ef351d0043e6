"""Which ggml types there are kernels for. Next: ``dispatch``."""

from __future__ import annotations

from typing import Literal

from worker.models.gguf.types import GGMLType

_T = GGMLType
FLOAT_TYPES = frozenset({_T.F32, _T.F16, _T.BF16})
QUANTIZED_TYPES = frozenset(
    {_T.Q4_0, _T.Q4_1, _T.Q5_0, _T.Q5_1, _T.Q8_0}
    | {_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K}
    | {_T.IQ4_NL, _T.IQ4_XS, _T.IQ3_XXS, _T.IQ3_S, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ1_S, _T.IQ1_M}
    | {_T.MXFP4, _T.TQ1_0, _T.TQ2_0, _T.Q2_0, _T.Q1_0}
)
WEIGHTS_REQUIRED = frozenset({_T.IQ2_XXS, _T.IQ2_XS, _T.IQ1_S})
"""Types that ggml cannot quantize without weights, whatever the caller's policy."""
WEIGHTS_IGNORED = frozenset({_T.Q8_0, _T.MXFP4, _T.TQ1_0, _T.TQ2_0, _T.Q2_0, _T.Q1_0})
"""Types that importance weights change nothing of."""
KernelKind = Literal["compiled", "reference"]

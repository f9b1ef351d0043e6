"""Every kernel by type and by whether there are importance weights. Data only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType
from worker.models.kernels import few_levels, iq1, iq2, iq3, iq4, k_affine, k_symmetric, legacy, mxfp4
from worker.models.kernels.grids import GRID_TYPES, search_table
from worker.models.kernels.kinds import WEIGHTS_IGNORED
from worker.models.kernels.machine import Block, Machine

Body = Callable[[Machine, Block], None]


class Kernel(NamedTuple):
    """One kernel, and what the walk over the blocks must know of it."""

    name: str
    body: Body
    length: int
    """Floats per block; a multiple of 16."""
    size_bytes: int
    weighted: bool
    """Whether it reads importance weights."""
    row_mean: bool
    """Whether it reads the mean square of its row."""
    table: Callable[[], NDArray[np.int32]] | None
    """Makes its lookup table."""


_T = GGMLType
_BODIES: dict[GGMLType, tuple[Body | None, Body]] = {
    _T.Q4_0: (legacy.quantize_q4_0, legacy.quantize_q4_0_weighted),
    _T.Q4_1: (legacy.quantize_q4_1, legacy.quantize_q4_1_weighted),
    _T.Q5_0: (legacy.quantize_q5_0, legacy.quantize_q5_0_weighted),
    _T.Q5_1: (legacy.quantize_q5_1, legacy.quantize_q5_1_weighted),
    _T.Q2_K: (k_affine.quantize_q2_k, k_affine.quantize_q2_k_weighted),
    _T.Q3_K: (k_symmetric.quantize_q3_k, k_symmetric.quantize_q3_k_weighted),
    _T.Q4_K: (k_affine.quantize_q4_k, k_affine.quantize_q4_k_weighted),
    _T.Q5_K: (k_affine.quantize_q5_k, k_affine.quantize_q5_k_weighted),
    _T.Q6_K: (k_symmetric.quantize_q6_k, k_symmetric.quantize_q6_k_weighted),
    _T.IQ4_NL: (iq4.quantize_iq4_nl, iq4.quantize_iq4_nl_weighted),
    _T.IQ4_XS: (iq4.quantize_iq4_xs, iq4.quantize_iq4_xs_weighted),
    _T.IQ3_XXS: (iq3.quantize_iq3_xxs, iq3.quantize_iq3_xxs_weighted),
    _T.IQ3_S: (iq3.quantize_iq3_s, iq3.quantize_iq3_s_weighted),
    _T.IQ2_XXS: (None, iq2.quantize_iq2_xxs),
    _T.IQ2_XS: (None, iq2.quantize_iq2_xs),
    _T.IQ2_S: (iq2.quantize_iq2_s, iq2.quantize_iq2_s_weighted),
    _T.IQ1_S: (None, iq1.quantize_iq1_s),
    _T.IQ1_M: (iq1.quantize_iq1_m, iq1.quantize_iq1_m_weighted),
    _T.Q8_0: (legacy.quantize_q8_0, legacy.quantize_q8_0),
    _T.MXFP4: (mxfp4.quantize_mxfp4, mxfp4.quantize_mxfp4),
    _T.TQ1_0: (few_levels.quantize_tq1_0, few_levels.quantize_tq1_0),
    _T.TQ2_0: (few_levels.quantize_tq2_0, few_levels.quantize_tq2_0),
    _T.Q2_0: (few_levels.quantize_q2_0, few_levels.quantize_q2_0),
    _T.Q1_0: (few_levels.quantize_q1_0, few_levels.quantize_q1_0),
}
"""Without and with weights; None where ggml has no form without."""
_ROW_MEAN = frozenset({_T.Q4_0, _T.Q4_1, _T.Q5_0, _T.Q5_1})
"""Types whose weighted form looks at its whole row."""
_TABLES: dict[GGMLType, Callable[[], NDArray[np.int32]]] = {
    ggml_type: partial(search_table, ggml_type) for ggml_type in GRID_TYPES
}


def _kernel(ggml_type: GGMLType, body: Body, *, weighted: bool) -> Kernel:
    weighted = weighted and ggml_type not in WEIGHTS_IGNORED
    name = f"{ggml_type.name.lower()}{'_weighted' if weighted else ''}"
    row_mean = weighted and ggml_type in _ROW_MEAN
    return Kernel(name, body, ggml_type.block_length, ggml_type.block_bytes, weighted, row_mean, _TABLES.get(ggml_type))


KERNELS: dict[tuple[GGMLType, bool], Kernel] = {
    (ggml_type, weighted): _kernel(ggml_type, body, weighted=weighted)
    for ggml_type, bodies in _BODIES.items()
    for weighted, body in zip((False, True), bodies, strict=True)
    if body is not None
}
"""By type and whether there are weights."""

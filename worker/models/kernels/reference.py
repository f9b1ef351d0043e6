"""The slow, always available form of every kernel: ggml's own routines, as packaged by ``libgguf``.

``libgguf`` spreads the rows of one call over threads of its own. Callers here bring their own threads, so every call
hands it a single row: what has no importance weights is computed block by block and goes in as one long row, the rest
row by row. The wrapper releases the GIL while it works.

IQ1_M is the one type where ``libgguf`` 0.2.2 and ggml (llama.cpp b11434) differ, and Q2_0 the one that it does not
know; ``reference_iq1_m`` and ``reference_q2_0`` have these.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType, row_bytes

MAX_CALL_ELEMENTS = 1 << 24
"""Elements per call: some of ggml's loops count in 32-bit integers."""

_T = GGMLType
LOOKUP_TYPES = frozenset({_T.IQ1_S, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S})
"""Types whose lookup tables ``libgguf`` builds on first use, without a lock."""

_tables_lock = threading.Lock()
_tables_ready: set[GGMLType] = set()


def quantize(
    ggml_type: GGMLType, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None
) -> None:
    """Quantize rows with ``libgguf``.

    Args:
        ggml_type: Any type of :data:`worker.models.kernels.QUANTIZED_TYPES` but IQ1_M and Q2_0.
        rows: ``float32 (n_rows, row_length)``, C-contiguous.
        out: ``uint8 (n_rows, row_bytes)``, C-contiguous; filled.
        weights: ``float32 (row_length,)`` or None.
    """
    if ggml_type in LOOKUP_TYPES:
        _build_tables(ggml_type)
    if weights is not None:
        for source, target in zip(rows, out, strict=True):
            _quantize_run(ggml_type, source, target, weights)
        return
    flat, flat_out = rows.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, MAX_CALL_ELEMENTS):
        source = flat[start : start + MAX_CALL_ELEMENTS]
        offset = row_bytes(ggml_type, start)
        _quantize_run(ggml_type, source, flat_out[offset : offset + row_bytes(ggml_type, source.size)], None)


def dequantize(ggml_type: GGMLType, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decode ``uint8 (n_rows, row_bytes)`` into ``float32 (n_rows, row_length)``; both C-contiguous."""
    from libgguf import dequantize_rows_into_raw

    flat, flat_out = data.reshape(-1), out.reshape(-1)
    for start in range(0, flat_out.size, MAX_CALL_ELEMENTS):
        target = flat_out[start : start + MAX_CALL_ELEMENTS]
        offset = row_bytes(ggml_type, start)
        source = flat[offset : offset + row_bytes(ggml_type, target.size)]
        dequantize_rows_into_raw(int(ggml_type), source, target, 1, target.size)


def _quantize_run(
    ggml_type: GGMLType, source: NDArray[np.float32], target: NDArray[np.uint8], weights: NDArray[np.float32] | None
) -> None:
    """Quantize one run of blocks; as a single row it stays on this thread."""
    from libgguf import quantize_rows_into_raw

    quantize_rows_into_raw(int(ggml_type), source, target, 1, source.size, weights)


def _build_tables(ggml_type: GGMLType) -> None:
    """Build a type's lookup tables once, before two threads could do it at the same time."""
    with _tables_lock:
        if ggml_type not in _tables_ready:
            length = ggml_type.block_length
            block = np.zeros(length, np.float32)
            out = np.empty(ggml_type.block_bytes, np.uint8)
            _quantize_run(ggml_type, block, out, np.ones(length, np.float32))
            _tables_ready.add(ggml_type)

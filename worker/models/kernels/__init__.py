"""Row conversion between float32 and every ggml type: the arithmetic below the quantize stage.

Byte for byte what ``ggml_quantize_chunk`` of llama.cpp b11434 writes on a plain x86-64 build (no fused multiply-add).
All functions are single-threaded and release the GIL, so callers spread slabs of rows over threads. NaN and infinity
are not looked for here: a tensor goes to many types and is checked once, with :func:`first_non_finite`.

Importing this package loads nothing but NumPy; ``dispatch`` and what it needs are loaded on the first call.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType
from worker.models.kernels.kinds import FLOAT_TYPES as FLOAT_TYPES
from worker.models.kernels.kinds import QUANTIZED_TYPES as QUANTIZED_TYPES
from worker.models.kernels.kinds import WEIGHTS_REQUIRED as WEIGHTS_REQUIRED
from worker.models.kernels.kinds import KernelKind as KernelKind


def quantize_rows(
    ggml_type: GGMLType,
    rows: NDArray[np.float32],
    out: NDArray[np.uint8],
    weights: NDArray[np.float32] | None = None,
) -> None:
    """Convert rows to a ggml type.

    Args:
        ggml_type: Target: one of :data:`QUANTIZED_TYPES` or :data:`FLOAT_TYPES`.
        rows: ``float32 (n_rows, row_length)``, C-contiguous, finite.
        out: ``uint8 (n_rows, row_bytes)``, C-contiguous; every byte is written.
        weights: Importance of each column, ``float32 (row_length,)``, or None. Ignored by the float types and those
            of ``kinds.WEIGHTS_IGNORED``.

    Raises:
        PackagingError: ``internal_error`` for arrays or types that do not fit together; ``imatrix_required`` for a
            type in :data:`WEIGHTS_REQUIRED` without weights.
    """
    from worker.models.kernels import dispatch

    dispatch.quantize(ggml_type, rows, out, weights)


def dequantize_rows(
    ggml_type: GGMLType, data: NDArray[np.uint8], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Decode rows of any supported type to float32.

    Args:
        ggml_type: Type of ``data``.
        data: ``uint8 (n_rows, row_bytes)``, C-contiguous.
        out: ``float32 (n_rows, row_length)`` to fill; a new array where not given.

    Raises:
        PackagingError: ``internal_error`` for arrays or types that do not fit together.
    """
    from worker.models.kernels import dispatch

    return dispatch.dequantize(ggml_type, data, out)


def widen_rows(
    source_type: GGMLType, raw: NDArray[np.uint8], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Widen F32, F16 or BF16 rows, as they lie in a file, to float32. Exact; F32 is returned as a view if it can be.

    Args:
        source_type: One of :data:`FLOAT_TYPES`.
        raw: ``uint8 (n_rows, row_bytes)``, C-contiguous.
        out: ``float32 (n_rows, row_length)`` to fill; a new array where not given.

    Raises:
        PackagingError: ``internal_error`` for arrays or types that do not fit together.
    """
    from worker.models.kernels import dispatch

    return dispatch.widen(source_type, raw, out)


def first_non_finite(rows: NDArray[np.float32]) -> int | None:
    """Position, in row-major order, of the first NaN or infinity in a C-contiguous float32 array; None if finite."""
    from worker.models.kernels import dispatch

    return dispatch.first_non_finite(rows)


def kernel_kind(ggml_type: GGMLType, *, weighted: bool) -> KernelKind:
    """Which implementation quantizes this type here: the compiled kernel, or the reference it falls back to."""
    from worker.models.kernels import dispatch

    return dispatch.kind_of(ggml_type, weighted=weighted)


def use_gpu(number: int = 0) -> bool:
    """Quantize on a CUDA device as well, from now on in this process; slabs that find it busy stay on the processor.

    The bytes are the same: a kernel that does not make ggml's bytes of a sample on this device is not used on it.

    Returns:
        Whether there is such a device; a missing one is logged.
    """
    from worker.models.kernels import on_gpu

    return on_gpu.use(number)


def gpu_if_there() -> AbstractContextManager[None]:
    """Within this context, :func:`use_gpu` the first device that this process may use, if there is any."""
    from worker.models.kernels import on_gpu

    return on_gpu.gpu_if_there()


def use_cache(cache_dir: Path) -> None:
    """Keep compiled kernels in this folder; to be called before the first kernel is used. Until then none are kept."""
    from worker.models.kernels import compiled

    compiled.use_cache(cache_dir)


def warm_up(types: Iterable[GGMLType] = (), *, in_background: bool = True) -> None:
    """Compile the kernels of these types (all, if none are named), or load them from the cache.

    Args:
        types: Types about to be made.
        in_background: Return at once and work on a daemon thread.
    """
    from worker.models.kernels import dispatch

    dispatch.warm_up(frozenset(types) or QUANTIZED_TYPES, in_background=in_background)

"""The compiled kernels in use: loaded on first need, checked once, replaced by the reference if they fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import structlog
from numpy.typing import NDArray

from worker.models.gguf.types import GGMLType
from worker.models.kernels import floats, reference
from worker.models.kernels.reference_iq1_m import quantize_iq1_m
from worker.models.kernels.reference_q2_0 import quantize_q2_0
from worker.models.kernels.self_check import DIGESTS, digest_of

if TYPE_CHECKING:
    from worker.models.kernels.catalogue import Kernel
    from worker.models.kernels.compiler import Compiled

log = structlog.get_logger(__name__)

_lock = threading.Lock()
_ready: dict[Hashable, Any] = {}
_cache_dir: Path | None = None

LANES = 16
Conversion = Callable[[NDArray[Any], NDArray[Any]], None]
CONVERSIONS: dict[str, Conversion] = {
    "widen_f16": floats.widen_f16,
    "widen_bf16": floats.widen_bf16,
    "narrow_f16": floats.narrow_f16,
    "narrow_bf16": floats.narrow_bf16,
}
"""Float conversions in their form without a compiler, by the name of the compiled one."""


class CompiledKernel:
    """A compiled kernel with the arrays it wants."""

    def __init__(self, kernel: Kernel, function: Compiled, row_means: Compiled | None) -> None:
        self._kernel, self._function, self._row_means = kernel, function, row_means
        self._table = kernel.table() if kernel.table else np.empty(0, np.int32)

    def __call__(self, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> None:
        """Quantize ``float32 (n_rows, row_length)`` into ``uint8 (n_rows, row_bytes)``, both C-contiguous."""
        n_blocks, per_row = rows.size // self._kernel.length, rows.shape[1] // self._kernel.length
        means = np.empty(rows.shape[0], np.float32)
        if self._row_means is not None:
            self._row_means(rows.ctypes.data, means.ctypes.data, *rows.shape)
        arrays = (rows, out, means if weights is None else weights, means, self._table)
        self._function(*(array.ctypes.data for array in arrays), n_blocks, per_row)


class CompiledStream:
    """A compiled float conversion; the rest that fills no vector is converted without it."""

    def __init__(self, function: Compiled, plain: Conversion) -> None:
        self._function, self._plain = function, plain

    def __call__(self, source: NDArray[Any], target: NDArray[Any]) -> None:
        """Convert between one-dimensional contiguous arrays of equal size."""
        whole = source.size - source.size % LANES
        if whole:
            self._function(source.ctypes.data, target.ctypes.data, whole // LANES)
        self._plain(source[whole:], target[whole:])


def kernel_of(ggml_type: GGMLType, *, weighted: bool) -> CompiledKernel | None:
    """The compiled kernel for a type, or None where the reference has to do."""
    return once((ggml_type, weighted), lambda: _load_kernel(ggml_type, weighted=weighted))


def conversion(name: str) -> Conversion:
    """A float conversion of :data:`CONVERSIONS`, compiled if possible."""
    return once(name, lambda: _load_stream(name) or CONVERSIONS[name])


def use_cache(cache_dir: Path) -> None:
    """Keep compiled kernels in this folder from now on."""
    global _cache_dir  # noqa: PLW0603  one place for the whole process, as the code in memory is
    _cache_dir = cache_dir


def cache_dir() -> Path | None:
    """The folder in use."""
    return _cache_dir


def quantize_by_reference(
    ggml_type: GGMLType, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None
) -> None:
    """Quantize without a compiled kernel; arguments as in :func:`worker.models.kernels.quantize_rows`, unchecked."""
    if ggml_type is GGMLType.IQ1_M:
        quantize_iq1_m(rows, out, weights)
    elif ggml_type is GGMLType.Q2_0:
        quantize_q2_0(rows, out)
    else:
        reference.quantize(ggml_type, rows, out, weights)


Thing = TypeVar("Thing")


def once(key: Hashable, make: Callable[[], Thing]) -> Thing:
    """What was made for this key; made now, by one thread, if it was not."""
    if key not in _ready:
        with _lock:
            if key not in _ready:
                _ready[key] = make()
    return cast("Thing", _ready[key])


def _load_kernel(ggml_type: GGMLType, *, weighted: bool) -> CompiledKernel | None:
    try:
        from worker.models.kernels.catalogue import KERNELS
        from worker.models.kernels.compiler import load, load_row_means

        kernel = KERNELS.get((ggml_type, weighted))
        if kernel is None:
            return None
        row_means = load_row_means(_cache_dir) if kernel.row_mean else None
        ready = CompiledKernel(kernel, load(kernel, _cache_dir), row_means)
    except (ImportError, RuntimeError, OSError) as error:
        _log_unavailable(ggml_type.name, error)
        return None
    made = digest_of(ready, kernel.length, kernel.size_bytes, weighted=kernel.weighted)
    if made != DIGESTS[kernel.name]:
        log.error("compiled kernel gives wrong bytes, using the reference", kernel=kernel.name, digest=made)
        return None
    return ready


def _load_stream(name: str) -> CompiledStream | None:
    try:
        from worker.models.kernels.compiler import load_stream
        from worker.models.kernels.streams import STREAMS

        ready = CompiledStream(load_stream(STREAMS[name], _cache_dir), CONVERSIONS[name])
    except (ImportError, RuntimeError, OSError) as error:
        _log_unavailable(name, error)
        return None
    source, target = _conversion_sample(name)
    expected = target.copy()
    ready(source, target)
    CONVERSIONS[name](source, expected)
    if not np.array_equal(target.view(np.uint8), expected.view(np.uint8)):
        log.error("compiled kernel gives wrong bytes, using the reference", kernel=name)
        return None
    return ready


def _log_unavailable(name: str, error: Exception) -> None:
    """No LLVM, a processor it does not know, no executable memory: slower, not wrong."""
    log.warning("kernel cannot be compiled here, using the reference", kernel=name, error=str(error))


def _conversion_sample(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers of all magnitudes, none of them NaN, and a place for the result."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    if name.startswith("widen"):
        exponent = 0x7C00 if name == "widen_f16" else 0x7F80
        halves = bits[(bits & 0x7FFF) <= exponent].astype(np.uint16)
        return halves, np.empty(halves.size, np.float32)
    numbers = ((bits << 16) + (bits * 40503 & 0xFFFF)).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    return numbers, np.empty(numbers.size, np.uint16)

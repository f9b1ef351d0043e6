"""From a type to the function that computes it: argument checks, choice of implementation, warm-up."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import floats, on_gpu, reference
from worker.models.kernels.compiled import CONVERSIONS, conversion, kernel_of, quantize_by_reference
from worker.models.kernels.kinds import FLOAT_TYPES, QUANTIZED_TYPES, WEIGHTS_REQUIRED, KernelKind
from worker.models.kernels.reference_q2_0 import dequantize_q2_0


def quantize(
    ggml_type: GGMLType, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None
) -> None:
    """See :func:`worker.models.kernels.quantize_rows`."""
    _check_rows(rows, np.float32)
    _check_out(out, (rows.shape[0], _row_bytes(ggml_type, rows.shape[1])), np.uint8)
    if weights is not None:
        _check_weights(weights, rows.shape[1])
    elif ggml_type in WEIGHTS_REQUIRED:
        raise PackagingError(ErrorCode.IMATRIX_REQUIRED, f"{ggml_type.name} cannot be made without weights")
    if rows.size == 0:
        return
    if ggml_type is GGMLType.F32:
        np.copyto(out, rows.view(np.uint8))
    elif ggml_type is GGMLType.F16:
        conversion("narrow_f16")(rows.reshape(-1), out.reshape(-1).view(np.uint16))
    elif ggml_type is GGMLType.BF16:
        conversion("narrow_bf16")(rows.reshape(-1), out.reshape(-1).view(np.uint16))
    else:
        gpu = on_gpu.kernel_of(ggml_type, weighted=weights is not None)
        if gpu is not None and gpu.attempt(rows, out, weights):
            return
        run = kernel_of(ggml_type, weighted=weights is not None)
        if run is None:
            quantize_by_reference(ggml_type, rows, out, weights)
        else:
            run(rows, out, weights)


def dequantize(ggml_type: GGMLType, data: NDArray[np.uint8], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """See :func:`worker.models.kernels.dequantize_rows`."""
    if ggml_type in FLOAT_TYPES:
        return widen(ggml_type, data, out)
    target = _decode_target(ggml_type, data, out)
    if target.size:
        if ggml_type is GGMLType.Q2_0:
            dequantize_q2_0(data, target)
        else:
            reference.dequantize(ggml_type, data, target)
    return target


def widen(source_type: GGMLType, raw: NDArray[np.uint8], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """See :func:`worker.models.kernels.widen_rows`."""
    if source_type not in FLOAT_TYPES:
        raise _misuse(f"{source_type.name} is not a float type")
    if source_type is GGMLType.F32 and out is None and raw.flags.c_contiguous and raw.ctypes.data % 4 == 0:
        _decode_shape(source_type, raw)
        return raw.view(np.float32)
    target = _decode_target(source_type, raw, out)
    if source_type is GGMLType.F32:
        np.copyto(target.view(np.uint8), raw)
    elif source_type is GGMLType.F16:
        conversion("widen_f16")(_aligned(raw), target.reshape(-1))
    else:
        conversion("widen_bf16")(_aligned(raw), target.reshape(-1))
    return target


def first_non_finite(rows: NDArray[np.float32]) -> int | None:
    """See :func:`worker.models.kernels.first_non_finite`."""
    if rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise _misuse(f"expected contiguous float32, got {rows.dtype} {rows.shape}")
    position = floats.find_non_finite(rows.reshape(-1))
    return None if position < 0 else position


def kind_of(ggml_type: GGMLType, *, weighted: bool) -> KernelKind:
    """See :func:`worker.models.kernels.kernel_kind`."""
    _row_bytes(ggml_type, 0)
    return "reference" if kernel_of(ggml_type, weighted=weighted) is None else "compiled"


def warm_up(types: frozenset[GGMLType], *, in_background: bool) -> None:
    """See :func:`worker.models.kernels.warm_up`."""

    def load_all() -> None:
        for name in CONVERSIONS:
            conversion(name)
        for ggml_type in sorted(types & QUANTIZED_TYPES):
            for weighted in (False, True):
                if weighted or ggml_type not in WEIGHTS_REQUIRED:
                    kernel_of(ggml_type, weighted=weighted)

    if in_background:
        threading.Thread(target=load_all, name="kernel-warm-up", daemon=True).start()
    else:
        load_all()


def _aligned(raw: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The bytes as 16-bit numbers; an odd address costs a copy."""
    flat = raw.reshape(-1)
    return (flat if flat.ctypes.data % 2 == 0 else flat.copy()).view(np.uint16)


def _decode_shape(ggml_type: GGMLType, data: NDArray[np.uint8]) -> tuple[int, int]:
    _check_rows(data, np.uint8)
    _row_bytes(ggml_type, 0)
    blocks, rest = divmod(data.shape[1], ggml_type.block_bytes)
    if rest:
        raise _misuse(f"rows of {data.shape[1]} bytes are no whole number of {ggml_type.name} blocks")
    return data.shape[0], blocks * ggml_type.block_length


def _decode_target(
    ggml_type: GGMLType, data: NDArray[np.uint8], out: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    shape = _decode_shape(ggml_type, data)
    if out is None:
        return np.empty(shape, np.float32)
    _check_out(out, shape, np.float32)
    return out


def _row_bytes(ggml_type: GGMLType, row_length: int) -> int:
    if ggml_type not in QUANTIZED_TYPES and ggml_type not in FLOAT_TYPES:
        raise _misuse(f"there is no kernel for {ggml_type.name}")
    try:
        return row_bytes(ggml_type, row_length)
    except ValueError as error:
        raise _misuse(str(error)) from error


def _check_rows(rows: NDArray[np.generic], dtype: type[np.generic]) -> None:
    if rows.dtype != dtype or rows.ndim != 2 or not rows.flags.c_contiguous:
        raise _misuse(f"expected contiguous rows of {dtype.__name__}, got {rows.dtype} {rows.shape}")


def _check_out(out: NDArray[np.generic], shape: tuple[int, int], dtype: type[np.generic]) -> None:
    _check_rows(out, dtype)
    if out.shape != shape or not out.flags.writeable:
        raise _misuse(f"expected a writable output of shape {shape}, got {out.shape}")


def _check_weights(weights: NDArray[np.float32], row_length: int) -> None:
    if weights.dtype != np.float32 or weights.shape != (row_length,) or not weights.flags.c_contiguous:
        raise _misuse(f"expected {row_length} float32 weights, got {weights.dtype} {weights.shape}")


def _misuse(fact: str) -> PackagingError:
    return PackagingError(ErrorCode.INTERNAL_ERROR, f"quantization kernel called wrongly: {fact}")

"""The GPU in use, if there is one: found, kernels loaded on first need and checked once, given back at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from worker.models.gguf.types import GGMLType
from worker.models.kernels.compiled import cache_dir
from worker.models.kernels.self_check import DIGESTS, digest_of

if TYPE_CHECKING:
    from worker.models.kernels.gpu import Gpu, GpuKernel

log = structlog.get_logger(__name__)

DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there where a CUDA driver is: on Linux, and in its Windows subsystem."""

_lock = threading.Lock()
_kernels: dict[tuple[GGMLType, bool], GpuKernel | None] = {}
_gpu: Gpu | None = None


def is_there() -> bool:
    """Whether there may be a device for this process: a driver is there, and no variable hides its devices."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    return not hidden and any(path.exists() for path in DRIVER_FILES)


@contextmanager
def gpu_if_there() -> Iterator[None]:
    """Within, quantize on the slot's GPU as well, where there is one. Leaves a device alone that is in use already."""
    used = _gpu is None and is_there() and use(0)
    try:
        yield
    finally:
        if used:
            leave()


def use(number: int, driver: Any = None) -> bool:
    """See :func:`worker.models.kernels.use_gpu`; ``driver`` as for :class:`worker.models.kernels.cuda.Device`."""
    global _gpu  # noqa: PLW0603  one device for the whole process
    from worker.models.kernels.cuda import Device
    from worker.models.kernels.gpu import Gpu

    try:
        gpu = Gpu(Device(number, driver))
    except (OSError, RuntimeError) as error:
        log.warning("no GPU for quantization, using the processor", device=number, error=str(error))
        return False
    leave()
    _gpu = gpu
    log.info("quantizing on a GPU and the processor", device=number, name=gpu.device.name)
    return True


def leave() -> None:
    """Use no device any more; nothing is left on it. No thread may be quantizing."""
    global _gpu
    with _lock:
        gpu, _gpu = _gpu, None
        _kernels.clear()
    if gpu is not None:
        gpu.close()


def kernel_of(ggml_type: GGMLType, *, weighted: bool) -> GpuKernel | None:
    """The kernel on the GPU in use, or None where there is none."""
    if _gpu is None or _gpu.failed:
        return None
    key = (ggml_type, weighted)
    if key not in _kernels:
        with _lock:
            if key not in _kernels:
                _kernels[key] = _load(_gpu, ggml_type, weighted=weighted)
    return _kernels[key]


def _load(gpu: Gpu, ggml_type: GGMLType, *, weighted: bool) -> GpuKernel | None:
    try:
        from worker.models.kernels.catalogue import KERNELS
        from worker.models.kernels.compiler import ptx
        from worker.models.kernels.gpu import GpuKernel

        kernel = KERNELS.get((ggml_type, weighted))
        if kernel is None:
            return None
        code = ptx(kernel, cache_dir())
        with gpu.free:
            ready = GpuKernel(gpu, kernel, code)
            made = digest_of(ready, kernel.length, kernel.size_bytes, weighted=kernel.weighted)
    except (ImportError, RuntimeError, OSError) as error:
        log.warning("kernel does not run on the GPU, using the processor", kernel=ggml_type.name, error=str(error))
        return None
    if made != DIGESTS[kernel.name]:
        log.error("kernel gives wrong bytes on the GPU, using the processor", kernel=kernel.name, digest=made)
        return None
    return ready

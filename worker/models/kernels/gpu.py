"""Quantization on a GPU, with the same bytes as on the processor.

The device takes one slab of rows at a time. A thread that finds it busy computes its slab on the processor instead,
so both work; which of the two made a slab cannot be seen in it. What the device holds is bounded by one slab, its
result and the kernels' tables, and is freed at the end, or when the device fails (out of memory, for one): the slab at
hand and all later ones are then made on the processor. A kernel is used only after the device has made ggml's
bytes of the sample that compiled kernels are checked with.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from worker.models.kernels.catalogue import Kernel
from worker.models.kernels.cuda import Device
from worker.models.kernels.thread_walk import THREADS

log = structlog.get_logger(__name__)

MAX_SLAB_BYTES = 1 << 30
"""Larger slabs stay on the processor: the device's memory is for the model."""


class Gpu:
    """A device, and what is on it: memory that is kept between slabs, and kernels."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.free = threading.Lock()
        """Held while a slab is on the device."""
        self.failed = False
        self._spaces: dict[str, tuple[int, int]] = {}
        self._tables: list[int] = []
        self._modules: list[Any] = []

    def space(self, name: str, size_bytes: int) -> int:
        """Address of at least so much memory; the one given out before under this name is gone."""
        address, have = self._spaces.get(name, (0, 0))
        if have < size_bytes:
            if self._spaces.pop(name, None):
                self.device.free(address)
            address = self.device.allocate(size_bytes)
            self._spaces[name] = (address, size_bytes)
        return address

    def load(self, ptx: str) -> Any:
        """A module, compiled for the device and dropped at the end."""
        module = self.device.load(ptx)
        self._modules.append(module)
        return module

    def constant(self, values: NDArray[Any]) -> int:
        """Address of a copy of an array that stays until the end."""
        address = self.device.allocate(values.nbytes)
        self._tables.append(address)
        self.device.upload(address, values)
        return address

    def give_up(self) -> None:
        """Ask the device no more, and leave its memory to others."""
        self.failed = True
        self._clear()

    def close(self) -> None:
        """Leave nothing on the device. No slab may be on it."""
        with self.free:
            self.failed = True
            with contextlib.suppress(RuntimeError):
                self.device.enter()
            self._clear()
            with contextlib.suppress(RuntimeError):
                self.device.leave()

    def _clear(self) -> None:
        """Free all; a device that failed may refuse even that."""
        addresses = [*self._tables, *(address for address, _ in self._spaces.values())]
        modules = list(self._modules)
        self._tables.clear()
        self._spaces.clear()
        self._modules.clear()
        for address in addresses:
            with contextlib.suppress(RuntimeError):
                self.device.free(address)
        for module in modules:
            with contextlib.suppress(RuntimeError):
                self.device.unload(module)


class GpuKernel:
    """A kernel on a device."""

    def __init__(self, gpu: Gpu, kernel: Kernel, ptx: str) -> None:
        self._gpu, self._kernel = gpu, kernel
        gpu.device.enter()
        module = gpu.load(ptx)
        self._function = gpu.device.function(module, "kernel")
        self._row_means = gpu.device.function(module, "row_means") if kernel.row_mean else None
        self._table = 0 if kernel.table is None else gpu.constant(kernel.table())

    def attempt(self, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> bool:
        """Quantize if the device is free; False if that is left to the processor.

        A device that fails once, for want of memory perhaps, is not asked again.
        """
        if self._gpu.failed or rows.nbytes > MAX_SLAB_BYTES or not self._gpu.free.acquire(blocking=False):
            return False
        try:
            if self._gpu.failed:  # while this thread came
                return False
            self(rows, out, weights)
        except RuntimeError as error:
            self._gpu.give_up()
            log.warning("GPU failed, quantizing on the processor alone", kernel=self._kernel.name, error=str(error))
            return False
        finally:
            self._gpu.free.release()
        return True

    def __call__(self, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> None:
        """Quantize ``float32 (n_rows, row_length)`` into ``uint8 (n_rows, row_bytes)``, both C-contiguous."""
        device, space = self._gpu.device, self._gpu.space
        device.enter()
        x, bytes_out, means = space("x", rows.nbytes), space("out", out.nbytes), space("means", 4 * rows.shape[0])
        device.upload(x, rows)
        weights_address = 0
        if weights is not None:
            weights_address = space("weights", weights.nbytes)
            device.upload(weights_address, weights)
        if self._row_means is not None:
            device.launch(self._row_means, _blocks(rows.shape[0]), THREADS, [x, means, *rows.shape])
        n_blocks, per_row = rows.size // self._kernel.length, rows.shape[1] // self._kernel.length
        arguments = [x, bytes_out, weights_address, means, self._table, n_blocks, per_row]
        device.launch(self._function, _blocks(n_blocks), THREADS, arguments)
        device.download(out, bytes_out)


def _blocks(n_threads: int) -> int:
    return -(-n_threads // THREADS)

"""The few calls of the CUDA driver that running a kernel takes. Nothing but the driver itself is needed.

The driver compiles PTX for whatever GPU there is. It uses the device's primary context, which torch uses too.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIBRARY = "libcuda.so.1"


class Device:
    """One GPU.

    Args:
        number: As the driver counts, after ``CUDA_VISIBLE_DEVICES``.
        driver: In the place of the driver's library: for tests.

    Raises:
        OSError: There is no driver.
        RuntimeError: The driver refuses: no such device, or none at all.
    """

    def __init__(self, number: int, driver: Any = None) -> None:
        self._driver = ctypes.CDLL(LIBRARY) if driver is None else driver
        self._call("cuInit", ctypes.c_uint(0))
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(number))
        device = self._device
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        name = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        self.name = name.value.decode()

    def enter(self) -> None:
        """Make this device the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def leave(self) -> None:
        """Give the device back: what was loaded and allocated on it must be unloaded and freed before."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def load(self, ptx: str) -> ctypes.c_void_p:
        """Compile a module for this device."""
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(ptx.encode()))
        return module

    def unload(self, module: ctypes.c_void_p) -> None:
        """Drop a module and its functions."""
        self._call("cuModuleUnload", module)

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """A function of a module."""
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(name.encode()))
        return function

    def launch(self, function: ctypes.c_void_p, n_blocks: int, n_threads: int, arguments: list[int]) -> None:
        """Start a function of 64-bit arguments, and wait for its end."""
        values = [ctypes.c_uint64(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid = [ctypes.c_uint(number) for number in (n_blocks, 1, 1, n_threads, 1, 1, 0)]
        self._call("cuLaunchKernel", function, *grid, ctypes.c_void_p(), pointers, ctypes.c_void_p())
        self._call("cuCtxSynchronize")

    def allocate(self, size_bytes: int) -> int:
        """Address of new memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, source: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the device."""
        size = ctypes.c_size_t(source.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(source.ctypes.data), size)

    def download(self, target: NDArray[np.uint8], address: int) -> None:
        """Copy from the device into a C-contiguous array."""
        size = ctypes.c_size_t(target.nbytes)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(target.ctypes.data), ctypes.c_uint64(address), size)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'error').decode()} ({status})")

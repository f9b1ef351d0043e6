# ruff: noqa: N802  the names are those of the driver
"""A CUDA driver without a GPU: runs the functions that PTX is made of, one thread after the other, on this processor.

What is simulated is the machine, not the kernel: the LLVM code is the one that the PTX text was generated from, down to
the check for threads beyond the last block. Only the reading of the two registers that number a thread is replaced, by
calls of functions that count. Memory of the device is host memory between guards, so that a store beside an allocation
shows; addresses outside of every allocation are refused, memory can run out, and what is not freed is counted.
"""

from __future__ import annotations

import ctypes
import re
from itertools import count
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np

from worker.models.kernels.catalogue import Kernel
from worker.models.kernels.compiler import optimised
from worker.models.kernels.processor import target_machine, this_processor
from worker.models.kernels.thread_walk import build_threads

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE, LAUNCH_FAILED = 0, 1, 2, 101, 719
NAMES = {1: b"CUDA_ERROR_INVALID_VALUE", 2: b"CUDA_ERROR_OUT_OF_MEMORY", 101: b"CUDA_ERROR_INVALID_DEVICE"}
GUARD = 4096
FILLED = 0xA5

_COUNTERS = """
@simulated_tid = global i32 0
@simulated_ctaid = global i32 0
define i32 @read_tid() { %v = load i32, i32* @simulated_tid
  ret i32 %v }
define i32 @read_ctaid() { %v = load i32, i32* @simulated_ctaid
  ret i32 %v }
"""
_LAUNCH = """
define void @launch_{name}({parameters}, i32 %blocks, i32 %threads) {{
entry:
  br label %each
each:
  %block = phi i32 [ 0, %entry ], [ %next_block, %step ]
  %thread = phi i32 [ 0, %entry ], [ %next_thread, %step ]
  store i32 %block, i32* @simulated_ctaid
  store i32 %thread, i32* @simulated_tid
  call void @{name}({arguments})
  br label %step
step:
  %after = add i32 %thread, 1
  %full = icmp eq i32 %after, %threads
  %next_thread = select i1 %full, i32 0, i32 %after
  %more_blocks = zext i1 %full to i32
  %next_block = add i32 %block, %more_blocks
  %done = icmp eq i32 %next_block, %blocks
  br i1 %done, label %end, label %each
end:
  ret void
}}
"""
TYPES = {"kernel": "float* i8* float* float* i32* i64 i64", "row_means": "float* float* i64 i64"}


def threads_code(kernel: Kernel) -> str:
    """LLVM code of a kernel for GPUs, as its PTX is generated from it, with counters for the thread's registers."""
    code = str(build_threads(kernel))
    for register in ("tid", "ctaid"):
        code, replaced = re.subn(rf'@"?llvm\.nvvm\.read\.ptx\.sreg\.{register}\.x"?', f"@read_{register}", code)
        assert replaced, f"no thread asks for its {register}"
        code = re.sub(rf"^declare i32 @read_{register}\(\)\s*$", "", code, flags=re.MULTILINE)
    code = code.replace("define ptx_kernel void", "define void") + _COUNTERS
    for name in ("kernel", "row_means") if kernel.row_mean else ("kernel",):
        kinds = TYPES[name].split()
        arguments = ", ".join(f"{kind} %a{number}" for number, kind in enumerate(kinds))
        code += _LAUNCH.format(name=name, parameters=arguments, arguments=arguments)
    return code


class SimulatedDriver:
    """The driver's functions that :class:`worker.models.kernels.cuda.Device` calls.

    Args:
        kernels: By their PTX text, the kernels that can be loaded.
        memory_bytes: Memory of the device.
    """

    def __init__(self, kernels: dict[str, Kernel], memory_bytes: int = 1 << 30) -> None:
        self.kernels, self.memory_bytes = kernels, memory_bytes
        self.allocated: dict[int, np.ndarray[Any, Any]] = {}
        self.modules: dict[int, Any] = {}
        self.functions: dict[int, tuple[Any, str]] = {}
        self.contexts = self.launches = self.peak_bytes = 0
        self.fails_at: int | None = None
        """The launch, from 0, at which the device fails."""
        self._handles = count(1)

    def cuInit(self, _flags: Any) -> int:
        return SUCCESS

    def cuDeviceGet(self, device: Any, number: Any) -> int:
        device._obj.value = number.value
        return SUCCESS if number.value == 0 else INVALID_DEVICE

    def cuDevicePrimaryCtxRetain(self, context: Any, _device: Any) -> int:
        self.contexts += 1
        context._obj.value = 0xC0
        return SUCCESS

    def cuDevicePrimaryCtxRelease_v2(self, _device: Any) -> int:
        self.contexts -= 1
        return SUCCESS

    def cuDeviceGetName(self, name: Any, _length: Any, _device: Any) -> int:
        name.value = b"simulated"
        return SUCCESS

    def cuGetErrorName(self, status: Any, text: Any) -> int:
        text._obj.value = NAMES.get(status.value, b"CUDA_ERROR_LAUNCH_FAILED")
        return SUCCESS

    def cuCtxSetCurrent(self, context: Any) -> int:
        return SUCCESS if context.value == 0xC0 else INVALID_VALUE

    def cuCtxSynchronize(self) -> int:
        return SUCCESS

    def cuModuleLoadData(self, module: Any, text: Any) -> int:
        kernel = self.kernels.get(text.value.decode())
        if kernel is None:
            return INVALID_VALUE
        machine = target_machine(this_processor())
        engine = llvm.create_mcjit_compiler(optimised(threads_code(kernel), machine), machine)
        engine.finalize_object()
        module._obj.value = handle = next(self._handles)
        self.modules[handle] = engine
        return SUCCESS

    def cuModuleUnload(self, module: Any) -> int:
        return SUCCESS if self.modules.pop(module.value, None) is not None else INVALID_VALUE

    def cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> int:
        function._obj.value = handle = next(self._handles)
        self.functions[handle] = (self.modules[module.value], name.value.decode())
        return SUCCESS

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        if self.used_bytes + size.value > self.memory_bytes:
            return OUT_OF_MEMORY
        memory = np.full(size.value + 2 * GUARD, FILLED, np.uint8)
        address._obj.value = start = memory.ctypes.data + GUARD
        self.allocated[start] = memory
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return SUCCESS

    def cuMemFree_v2(self, address: Any) -> int:
        memory = self.allocated.pop(address.value, None)
        if memory is None:
            return INVALID_VALUE
        assert (memory[:GUARD] == FILLED).all(), "stored before the start of an allocation"
        assert (memory[-GUARD:] == FILLED).all(), "stored behind the end of an allocation"
        return SUCCESS

    def cuMemcpyHtoD_v2(self, target: Any, source: Any, size: Any) -> int:
        return self._copy(target.value, source.value, size.value, target.value)

    def cuMemcpyDtoH_v2(self, target: Any, source: Any, size: Any) -> int:
        return self._copy(target.value, source.value, size.value, source.value)

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        blocks, blocks_y, blocks_z, threads, threads_y, threads_z, shared = (number.value for number in rest[:7])
        assert (blocks_y, blocks_z, threads_y, threads_z, shared) == (1, 1, 1, 1, 0)
        assert 0 < blocks < 2**31
        assert threads <= 1024
        if self.fails_at is not None and self.launches >= self.fails_at:
            return LAUNCH_FAILED
        self.launches += 1
        engine, name = self.functions[function.value]
        assert engine in self.modules.values(), "the module is gone"
        n_arguments = len(TYPES[name].split())
        values = [ctypes.c_uint64.from_address(pointer).value for pointer in rest[8][:n_arguments]]
        launch = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * n_arguments, ctypes.c_uint32, ctypes.c_uint32)
        launch(engine.get_function_address(f"launch_{name}"))(*values, blocks, threads)
        return SUCCESS

    @property
    def used_bytes(self) -> int:
        return sum(memory.size - 2 * GUARD for memory in self.allocated.values())

    def _copy(self, target: int, source: int, size: int, on_device: int) -> int:
        inside = [start for start, memory in self.allocated.items() if start == on_device]
        if not inside or size > self.allocated[on_device].size - 2 * GUARD:
            return INVALID_VALUE
        ctypes.memmove(target, source, size)
        return SUCCESS

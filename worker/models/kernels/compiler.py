"""From a kernel's source to a function in memory: LLVM through ``llvmlite``, kept on disk.

Compiling takes a quarter of a second a kernel, loading some milliseconds.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]

from worker.models.kernels.block_walk import build_module, build_row_means
from worker.models.kernels.catalogue import Kernel
from worker.models.kernels.code_cache import kept
from worker.models.kernels.processor import Processor, target_machine, this_processor
from worker.models.kernels.streams import STREAMS, Stream, build_stream
from worker.models.kernels.thread_walk import build_threads

Compiled = Callable[..., None]
"""Takes addresses and counts, as the function it was built from says; runs without the GIL."""

GPU_TRIPLE = "nvptx64-nvidia-cuda"
GPU_ARCHITECTURE = "sm_70"
"""PTX of this generation runs on every later one: the driver compiles it for the GPU at hand."""

_BLOCKS = ctypes.CFUNCTYPE(None, *([ctypes.c_void_p] * 5), ctypes.c_int64, ctypes.c_int64)
_STREAM = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_ROWS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_lock = threading.Lock()
_engines: list[Any] = []
"""Own the code in memory; kept for the life of the process."""


def load(kernel: Kernel, cache_dir: Path | None, processor: Processor | None = None) -> Compiled:
    """The compiled form of a kernel, from the cache if it is there.

    Args:
        kernel: What to compile.
        cache_dir: Folder of object files; None compiles without keeping anything. A folder that cannot be written
            to is as good as none.
        processor: What to use of the processor; None takes what it has.
    """
    compiled: Compiled = _BLOCKS(_address(_kernel_code(kernel, cache_dir, processor or this_processor())))
    return compiled


def load_row_means(cache_dir: Path | None) -> Compiled:
    """The function for the mean squares of rows, compiled or from the cache as in :func:`load`."""
    compiled: Compiled = _ROWS(_address(_row_means_code(cache_dir, this_processor())))
    return compiled


def load_stream(stream: Stream, cache_dir: Path | None) -> Compiled:
    """A float conversion, ``(source, target, n_vectors)``, compiled or from the cache as in :func:`load`."""
    compiled: Compiled = _STREAM(_address(_stream_code(stream, cache_dir, this_processor())))
    return compiled


def keep(kernels: Iterable[Kernel], cache_dir: Path, processor: Processor) -> Iterator[str]:
    """Compile float conversions and kernels for a processor, this one or another, unless the cache has them.

    Yields:
        The name of each, once it is there.
    """
    for stream in STREAMS.values():
        _stream_code(stream, cache_dir, processor)
        yield stream.name
    _row_means_code(cache_dir, processor)
    yield "row_means"
    for kernel in kernels:
        _kernel_code(kernel, cache_dir, processor)
        yield kernel.name


def ptx(kernel: Kernel, cache_dir: Path | None) -> str:
    """PTX text of a kernel's form for GPUs, compiled or from the cache as in :func:`load`."""
    with _lock:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(GPU_TRIPLE).create_target_machine(cpu=GPU_ARCHITECTURE, opt=3)

        def compile_ptx() -> bytes:
            text: str = target.emit_assembly(optimised(build_threads(kernel), target))
            return text.encode()

        return kept(f"{kernel.name}-ptx", (GPU_TRIPLE, GPU_ARCHITECTURE), cache_dir, compile_ptx).decode()


def _kernel_code(kernel: Kernel, cache_dir: Path | None, processor: Processor) -> bytes:
    name = f"{kernel.name}-{processor.permutes.value}"
    return _object(name, lambda: build_module(kernel, processor.permutes), cache_dir, processor)


def _row_means_code(cache_dir: Path | None, processor: Processor) -> bytes:
    return _object("row_means", build_row_means, cache_dir, processor)


def _stream_code(stream: Stream, cache_dir: Path | None, processor: Processor) -> bytes:
    return _object(stream.name, lambda: build_stream(stream), cache_dir, processor)


def _object(name: str, build: Callable[[], Any], cache_dir: Path | None, processor: Processor) -> bytes:
    with _lock:
        target = target_machine(processor)
        return kept(
            name,
            (target.triple, processor.name, processor.features),
            cache_dir,
            lambda: target.emit_object(optimised(build(), target)),
        )


def _address(code: bytes) -> int:
    """Address of an object file's function, with the file loaded."""
    with _lock:
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine(this_processor()))
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        address: int = engine.get_function_address("kernel")
        return address


def assembly(kernel: Kernel, processor: Processor | None = None) -> str:
    """Assembly text of a kernel for this processor, to look at."""
    with _lock:
        target = target_machine(processor or this_processor())
        permutes = (processor or this_processor()).permutes
        text: str = target.emit_assembly(optimised(build_module(kernel, permutes), target))
        return text


def optimised(source: Any, target: Any) -> Any:
    """A module for a target, from its text or from what prints it: verified, and through LLVM's passes."""
    module = llvm.parse_assembly(str(source))
    module.triple, module.data_layout = target.triple, str(target.target_data)
    module.verify()
    # vectors and unrolling are spelled out in the kernels: the passes that look for them only cost time
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_interleaving = tuning.loop_unrolling = False
    builder = llvm.create_pass_builder(target, tuning)
    builder.getModulePassManager().run(module, builder)
    return module

"""From a kernel's source to a function in memory: LLVM through ``llvmlite``, kept on disk.

A compiled kernel is an object file named for everything it depends on: the source of this package, the processor and
its features, and the LLVM version. It is stored with its digest, so that a cut-off or altered file is compiled again
instead of run. Compiling takes a quarter of a second a kernel, loading some milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import llvmlite.binding as llvm  # type: ignore[import-untyped]

from worker.kernels.block_walk import build_module, build_row_means
from worker.kernels.catalogue import Kernel
from worker.kernels.point_search import Permutes
from worker.kernels.streams import Stream, build_stream
from worker.kernels.thread_walk import Walk, build_threads

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


def load(kernel: Kernel, cache_dir: Path | None, permutes: Permutes | None = None) -> Compiled:
    """The compiled form of a kernel, from the cache if it is there.

    Args:
        kernel: What to compile.
        permutes: What to use of the processor; None takes what it has.
        cache_dir: Folder of object files; None compiles without keeping anything. A folder that cannot be written
            to is as good as none.
    """
    used = permutes or _permutes()
    name = f"{kernel.name}-{used.value}"
    compiled: Compiled = _BLOCKS(_address(name, lambda: build_module(kernel, used), cache_dir))
    return compiled


def load_row_means(cache_dir: Path | None) -> Compiled:
    """The function for the mean squares of rows, compiled or from the cache as in :func:`load`."""
    compiled: Compiled = _ROWS(_address("row_means", build_row_means, cache_dir))
    return compiled


def load_stream(stream: Stream, cache_dir: Path | None) -> Compiled:
    """A float conversion, ``(source, target, n_vectors)``, compiled or from the cache as in :func:`load`."""
    compiled: Compiled = _STREAM(_address(stream.name, lambda: build_stream(stream), cache_dir))
    return compiled


def ptx(kernel: Kernel, cache_dir: Path | None) -> str:
    """PTX text of a kernel's form for GPUs, compiled or from the cache as in :func:`load`."""
    with _lock:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(GPU_TRIPLE).create_target_machine(cpu=GPU_ARCHITECTURE, opt=3)

        def compile_ptx() -> bytes:
            text: str = target.emit_assembly(_optimised(build_threads(kernel, Walk.THREADS), target))
            return text.encode()

        return _kept(f"{kernel.name}-ptx", target, cache_dir, compile_ptx).decode()


def load_simulated(kernel: Kernel) -> tuple[Compiled, Compiled | None]:
    """A kernel's form for GPUs, run by this processor in a loop; and its function for row means. For tests."""
    target = _target_machine()
    module = _optimised(build_threads(kernel, Walk.LOOP), target)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    _engines.append(engine)
    row_means = _ROWS(engine.get_function_address("row_means")) if kernel.row_mean else None
    return _BLOCKS(engine.get_function_address("kernel")), row_means


def _kept(name: str, target: Any, cache_dir: Path | None, make: Callable[[], bytes]) -> bytes:
    """What the cache has under a name, or what is made and put there now."""
    path = None if cache_dir is None else cache_dir / f"{name}-{_key(target)}.o"
    code = None if path is None else _read(path)
    if code is None:
        code = make()
        if path is not None:
            _write(path, code)
    return code


def _address(name: str, build: Callable[[], Any], cache_dir: Path | None) -> int:
    """Address of a module's function, with the module loaded."""
    with _lock:
        target = _target_machine()
        code = _kept(name, target, cache_dir, lambda: target.emit_object(_optimised(build(), target)))
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        address: int = engine.get_function_address("kernel")
        return address


def assembly(kernel: Kernel) -> str:
    """Assembly text of a kernel for this processor, to look at."""
    with _lock:
        target = _target_machine()
        text: str = target.emit_assembly(_optimised(build_module(kernel, _permutes()), target))
        return text


def _permutes() -> Permutes:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f", False):
        return Permutes.AVX512
    return Permutes.AVX2 if features.get("avx2", False) else Permutes.NONE


def _target_machine() -> Any:
    """Code generator for this very processor. An engine takes it over, so each gets its own."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )


def _optimised(source: Any, target: Any) -> Any:
    module = llvm.parse_assembly(str(source))
    module.triple, module.data_layout = target.triple, str(target.target_data)
    module.verify()
    # vectors and unrolling are spelled out in the kernels: the passes that look for them only cost time
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_interleaving = tuning.loop_unrolling = False
    builder = llvm.create_pass_builder(target, tuning)
    builder.getModulePassManager().run(module, builder)
    return module


def _key(target: Any) -> str:
    parts = [_source_digest(), llvmlite.__version__, target.triple]
    parts += [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


@cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, code = stored[:32], stored[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)

"""Speed of the quantization kernels against ggml: ``python -m tests.bench.kernels [--reference libggml-base.so]``.

Both quantize the same rows in turn. On one core, processor time counts, so that other work on the machine matters
less; on all cores it is the time that passes, with rows spread over one thread per core. Figures are medians, in
millions of weights a second; the ratios come first. Every row also says whether the bytes were the same.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.reference import tool
from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import quantize_rows, widen_rows
from worker.models.kernels.catalogue import KERNELS
from worker.models.kernels.compiled import quantize_by_reference
from worker.models.kernels.compiler import load

ROW_LENGTH = 4096
Quantize = Callable[[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32] | None], None]


@dataclass(frozen=True)
class Speeds:
    """Millions of weights a second of one implementation."""

    one_core: float
    all_cores: float


def ggml_quantizer(path: Path, ggml_type: GGMLType) -> Quantize:
    """``ggml_quantize_chunk`` of a built ``libggml-base``."""
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> None:
        weights_address = 0 if weights is None else weights.ctypes.data
        function(int(ggml_type), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights_address)

    return quantize


class Case:
    """One type, with or without weights, and rows to quantize."""

    def __init__(self, ggml_type: GGMLType, weighted: bool, n_rows: int) -> None:
        random = np.random.default_rng(1)
        self.ggml_type = ggml_type
        # weights of a trained model look like this: normal, each row with a spread of its own
        spread = random.uniform(0.01, 0.04, (n_rows, 1))
        self.rows = (random.standard_normal((n_rows, ROW_LENGTH)) * spread).astype(np.float32)
        self.weights = np.exp(random.normal(-1, 1.5, ROW_LENGTH)).astype(np.float32) if weighted else None
        self.cores = len(os.sched_getaffinity(0))

    def output(self, n_rows: int) -> NDArray[np.uint8]:
        """Space for so many rows, touched already: no page is new while time is taken."""
        return np.ones((n_rows, row_bytes(self.ggml_type, ROW_LENGTH)), np.uint8)

    def rows_taking(self, quantize: Quantize, seconds: float) -> int:
        """How many rows keep one core busy for about this long."""
        out = self.output(1)
        quantize(self.rows[:1], out, self.weights)
        started = time.thread_time()
        quantize(self.rows[:1], out, self.weights)
        return int(np.clip(seconds / max(time.thread_time() - started, 1e-9), 1, len(self.rows)))

    def one_core(self, quantize: Quantize, n_rows: int) -> float:
        out = self.output(n_rows)
        started = time.thread_time()
        quantize(self.rows[:n_rows], out, self.weights)
        return n_rows * ROW_LENGTH / (time.thread_time() - started) / 1e6

    def all_cores(self, quantize: Quantize, n_rows: int, pool: ThreadPoolExecutor) -> float:
        n_rows = min(n_rows * self.cores, len(self.rows))
        out = self.output(n_rows)
        step = max(n_rows // (4 * self.cores), 1)
        slabs = [slice(start, start + step) for start in range(0, n_rows, step)]
        started = time.perf_counter()
        list(pool.map(lambda slab: quantize(self.rows[:n_rows][slab], out[slab], self.weights), slabs))
        return n_rows * ROW_LENGTH / (time.perf_counter() - started) / 1e6


def measure(case: Case, quantizers: Sequence[Quantize], repeat: int) -> list[Speeds]:
    """Speeds of the quantizers, measured in turn."""
    sizes = [case.rows_taking(quantize, 0.05) for quantize in quantizers]
    one: list[list[float]] = [[] for _ in quantizers]
    many: list[list[float]] = [[] for _ in quantizers]
    with ThreadPoolExecutor(case.cores) as pool:
        for _ in range(repeat):
            for number, (quantize, n_rows) in enumerate(zip(quantizers, sizes, strict=True)):
                one[number].append(case.one_core(quantize, n_rows))
                many[number].append(case.all_cores(quantize, n_rows, pool))
    return [Speeds(statistics.median(a), statistics.median(b)) for a, b in zip(one, many, strict=True)]


def bench_kernel(ggml_type: GGMLType, weighted: bool, reference: Path | None, repeat: int, n_rows: int) -> str:
    """One line of the table."""
    case = Case(ggml_type, weighted, n_rows)

    def ours(rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> None:
        quantize_rows(ggml_type, rows, out, weights)

    def theirs(rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> None:
        quantize_by_reference(ggml_type, rows, out, weights)

    other = theirs if reference is None else ggml_quantizer(reference, ggml_type)
    started = time.thread_time()
    load(KERNELS[ggml_type, weighted], None)
    compile_s = time.thread_time() - started
    same_rows = case.rows_taking(other, 0.05)
    made, expected = case.output(same_rows), case.output(same_rows)
    ours(case.rows[:same_rows], made, case.weights)
    other(case.rows[:same_rows], expected, case.weights)
    mine, its = measure(case, (ours, other), repeat)
    return (
        f"{ggml_type.name:8} {'yes' if weighted else 'no':7} {mine.one_core / its.one_core:6.1f} "
        f"{mine.all_cores / its.all_cores:6.1f} {mine.one_core:8.1f} {its.one_core:8.1f} {mine.all_cores:8.1f} "
        f"{its.all_cores:8.1f} {compile_s:7.2f} {'yes' if np.array_equal(made, expected) else 'NO':>5}"
    )


def bench_conversions(repeat: int) -> None:
    """Float conversions in gigabytes read and written a second, beside a plain copy."""
    numbers = np.random.default_rng(1).standard_normal((64, 1 << 18)).astype(np.float32)
    copy = np.empty_like(numbers)

    def gigabytes(run: Callable[[], object], size_bytes: int) -> float:
        speeds = []
        for _ in range(repeat + 1):
            started = time.thread_time()
            run()
            speeds.append(size_bytes / (time.thread_time() - started) / 1e9)
        return statistics.median(speeds[1:])

    copying = gigabytes(lambda: np.copyto(copy, numbers), 2 * copy.nbytes)
    print(f"\nfloat conversions, GB/s on one core; a copy makes {copying:.1f}")
    halves = np.ones((64, 1 << 19), np.uint8)
    both_bytes = numbers.nbytes + halves.nbytes
    for ggml_type in (GGMLType.F16, GGMLType.BF16):
        narrow = gigabytes(partial(quantize_rows, ggml_type, numbers, halves), both_bytes)
        widen = gigabytes(partial(widen_rows, ggml_type, halves, copy), both_bytes)
        print(f"{ggml_type.name:5} from float32 {narrow:5.1f}   to float32 {widen:5.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reference", type=Path, default=tool("libggml-base.so"), help="libggml-base.so to compare with"
    )
    parser.add_argument("--types", nargs="*", default=None, help="only these, e.g. Q4_K IQ4_XS")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rows", type=int, default=512, help=f"rows of {ROW_LENGTH} at most")
    options = parser.parse_args()
    print(
        f"against {options.reference or 'libgguf'}, {len(os.sched_getaffinity(0))} cores, medians of {options.repeat}"
    )
    print("                 ratio of     ours: million weights/s, ggml's, and")
    print("type     weights 1 core    all   1 core     ggml      all     ggml compile  same")
    for ggml_type, weighted in KERNELS:
        if options.types is None or ggml_type.name in options.types:
            print(bench_kernel(ggml_type, weighted, options.reference, options.repeat, options.rows), flush=True)
    bench_conversions(options.repeat)


if __name__ == "__main__":
    main()

"""Misuse, the fall-back without a compiler, and the cache of compiled kernels."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.types import GGMLType
from worker.models.kernels import dequantize_rows, first_non_finite, kernel_kind, quantize_rows, widen_rows
from worker.models.kernels.catalogue import KERNELS
from worker.models.kernels.compiler import assembly, load

ROWS = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)


def out_for(n_bytes: int) -> np.ndarray:
    return np.empty((2, n_bytes), np.uint8)


DOUBLES: Any = np.ones(256)


@pytest.mark.parametrize(
    ("call", "fact"),
    [
        (lambda: quantize_rows(GGMLType.Q4_K, ROWS.astype(np.float64), out_for(144)), "float64"),
        (lambda: quantize_rows(GGMLType.Q4_K, ROWS.reshape(-1), out_for(144)), "(512,)"),
        (lambda: quantize_rows(GGMLType.Q4_K, ROWS.reshape(4, 128), out_for(72)), "multiple of the 256"),
        (lambda: quantize_rows(GGMLType.Q8_0, ROWS.T, out_for(34)), "contiguous"),
        (lambda: quantize_rows(GGMLType.Q4_K, ROWS, out_for(143)), "(2, 144)"),
        (lambda: quantize_rows(GGMLType.Q4_K, ROWS, out_for(144), np.ones(255, np.float32)), "256 float32 weights"),
        (lambda: quantize_rows(GGMLType.Q4_K, ROWS, out_for(144), DOUBLES), "float64"),
        (lambda: quantize_rows(GGMLType.Q8_K, ROWS, out_for(292)), "no kernel for Q8_K"),
        (lambda: dequantize_rows(GGMLType.Q4_K, out_for(145)), "145 bytes"),
        (lambda: dequantize_rows(GGMLType.NVFP4, out_for(36)), "no kernel for NVFP4"),
        (lambda: widen_rows(GGMLType.Q8_0, out_for(34)), "Q8_0 is not a float type"),
        (lambda: first_non_finite(ROWS[:, ::2]), "contiguous"),
        (lambda: kernel_kind(GGMLType.I8, weighted=False), "no kernel for I8"),
    ],
)
def test_misuse_is_an_internal_error(call: Callable[..., Any], fact: str) -> None:
    with pytest.raises(PackagingError) as raised:
        call()
    assert raised.value.code is ErrorCode.INTERNAL_ERROR
    assert fact in raised.value.message


@pytest.mark.parametrize("ggml_type", [GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ1_S], ids=lambda t: t.name)
def test_types_that_need_weights_are_refused_without(ggml_type: GGMLType) -> None:
    with pytest.raises(PackagingError) as raised:
        quantize_rows(ggml_type, ROWS, out_for(ggml_type.block_bytes))
    assert raised.value.code is ErrorCode.IMATRIX_REQUIRED
    assert kernel_kind(ggml_type, weighted=False) == "reference"


def test_no_rows_are_no_error() -> None:
    quantize_rows(GGMLType.Q4_K, np.empty((0, 256), np.float32), np.empty((0, 144), np.uint8))
    assert dequantize_rows(GGMLType.Q4_K, np.empty((0, 144), np.uint8)).shape == (0, 256)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)


def test_without_a_compiler_the_reference_gives_the_same_bytes() -> None:
    rows = np.sin(np.arange(512, dtype=np.float32)).reshape(2, 256)
    expected = out_for(144)
    quantize_rows(GGMLType.Q4_K, rows, expected)
    done = run_python("""
        import sys
        sys.modules["llvmlite"] = None  # as if it were not installed
        import numpy as np
        from worker.models.gguf.types import GGMLType
        from worker.models.kernels import kernel_kind, quantize_rows, widen_rows
        rows = np.sin(np.arange(512, dtype=np.float32)).reshape(2, 256)
        out = np.empty((2, 144), np.uint8)
        quantize_rows(GGMLType.Q4_K, rows, out)
        assert kernel_kind(GGMLType.Q4_K, weighted=False) == "reference"
        half = np.array([[1.5]], np.float16).view(np.uint8)
        assert widen_rows(GGMLType.F16, half).tolist() == [[1.5]]
        print(out.tobytes().hex())
    """)
    lines = done.stdout.splitlines()
    assert lines[-1] == expected.tobytes().hex()
    assert sum("using the reference" in line and "kernel=Q4_K" in line.replace("'", "") for line in lines) == 1


def test_importing_the_package_loads_no_compiler() -> None:
    run_python("""
        import sys
        import worker.models.kernels
        heavy = {"llvmlite", "numba", "libgguf", "gguf", "torch"} & set(sys.modules)
        assert not heavy, heavy
    """)


def test_compiled_kernels_are_kept_and_damaged_ones_made_again(tmp_path: Path) -> None:
    kernel = KERNELS[GGMLType.Q8_0, False]

    def quantized() -> bytes:
        out = np.empty((2, 272), np.uint8)
        table = np.empty(0, np.int32)
        arrays = (ROWS, out, ROWS, ROWS, table)
        load(kernel, tmp_path / "kernels")(*(array.ctypes.data for array in arrays), ROWS.size // 32, 8)
        return out.tobytes()

    first = quantized()
    (kept,) = (tmp_path / "kernels").iterdir()
    written = kept.stat().st_mtime_ns
    assert quantized() == first
    assert kept.stat().st_mtime_ns == written
    whole = kept.read_bytes()
    load(KERNELS[GGMLType.Q5_0, False], tmp_path / "other")
    (other,) = (tmp_path / "other").iterdir()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b"", other.read_bytes()):
        kept.write_bytes(damaged)
        assert quantized() == first
        assert kept.read_bytes() == whole
    assert list((tmp_path / "kernels").iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert load(KERNELS[GGMLType.Q8_0, False], occupied / "kernels") is not None


def test_multiplications_and_additions_are_not_fused() -> None:
    text = assembly(KERNELS[GGMLType.Q4_K, False])
    assert "mul" in text
    assert not any(name in text for name in ("fmadd", "fnmadd", "fmsub", "fmla", "fmls"))


def test_a_missing_gpu_is_no_error() -> None:
    done = run_python("""
        import numpy as np
        from worker.models.gguf.types import GGMLType
        from worker.models.kernels import kernel_kind, quantize_rows, use_gpu
        assert not use_gpu(99)
        out = np.empty((1, 34), np.uint8)
        quantize_rows(GGMLType.Q8_0, np.ones((1, 32), np.float32), out)
        assert out[0, 2:].tolist() == [127] * 32
    """)
    assert "no GPU for quantization" in done.stdout


def test_warm_up_in_the_background_leaves_kernels_ready(tmp_path: Path) -> None:
    done = run_python(f"""
        import threading
        from pathlib import Path
        from worker.models.gguf.types import GGMLType
        from worker.models.kernels import kernel_kind, use_cache, warm_up
        cache = Path({str(tmp_path)!r})
        use_cache(cache)
        warm_up([GGMLType.Q8_0, GGMLType.Q4_0])
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "kernel-warm-up"]
        thread.join(60)
        assert not thread.is_alive()
        print(kernel_kind(GGMLType.Q4_0, weighted=True))
        print(*sorted(path.name.split("-")[0] for path in cache.iterdir()))
    """)
    kind, names = done.stdout.splitlines()
    assert kind == "compiled"
    assert names.split() == [
        "narrow_bf16",
        "narrow_f16",
        "q4_0",
        "q4_0_weighted",
        "q8_0",
        "row_means",
        "widen_bf16",
        "widen_f16",
    ]

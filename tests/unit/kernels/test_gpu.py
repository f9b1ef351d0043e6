"""The path over a GPU, from the choice of the device to the bytes, on a simulated one; and the PTX that real ones get.

No device is asked for: the kernels that run here are the code that the PTX is generated from, thread by thread.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog.testing

from tests.unit.kernels.golden_blocks import block_cases
from tests.unit.kernels.gpu_simulator import SimulatedDriver
from tests.unit.kernels.test_golden_blocks import differences, empty_output
from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import on_gpu, quantize_rows
from worker.models.kernels.catalogue import KERNELS, Kernel
from worker.models.kernels.compiler import ptx
from worker.models.kernels.cuda import Device
from worker.models.kernels.gpu import Gpu, GpuKernel
from worker.models.kernels.thread_walk import THREADS

ROUNDED = re.compile(r"\b(?:add|sub|mul|div|sqrt|fma|mad)\S*\.f32\b")


@pytest.fixture
def in_use() -> Iterator[Callable[..., SimulatedDriver]]:
    """Puts a simulated device into use; nothing may be left on it at the end."""
    drivers = []

    def put(*kernels: Kernel, **settings: Any) -> SimulatedDriver:
        driver = SimulatedDriver({ptx(kernel, None): kernel for kernel in kernels}, **settings)
        drivers.append(driver)
        assert on_gpu.use(0, driver)
        return driver

    yield put
    on_gpu.leave()
    for driver in drivers:
        assert (driver.used_bytes, driver.modules, driver.contexts) == (0, {}, 0)


def rows_and_result(n_rows: int, ggml_type: GGMLType = GGMLType.Q4_0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = np.random.default_rng(n_rows).standard_normal((n_rows, 256)).astype(np.float32)
    expected = np.empty((n_rows, row_bytes(ggml_type, 256)), np.uint8)
    quantize_rows(ggml_type, rows, expected)
    return rows, expected, np.zeros_like(expected)


@pytest.mark.parametrize(("ggml_type", "weighted"), KERNELS, ids=lambda value: getattr(value, "name", str(value)))
def test_every_kernel_writes_what_ggml_writes(ggml_type: GGMLType, weighted: bool) -> None:
    """All golden cases of a type, and the text of its PTX: single operations, each rounded to nearest."""
    kernel = KERNELS[ggml_type, weighted]
    text = ptx(kernel, None)
    used = set(ROUNDED.findall(text))
    assert {"mul.rn.f32", "add.rn.f32"} <= used <= {f"{op}.rn.f32" for op in ("add", "sub", "mul", "div", "sqrt")}
    assert not re.search(r"\b(fma|mad)\.\w*\.?f32|\.ftz|\.approx|\.full|\.f64", text)
    assert text.count(".param .u64") == 7 + 4 * kernel.row_mean

    driver = SimulatedDriver({text: kernel})
    gpu = Gpu(Device(0, driver))
    run = GpuKernel(gpu, kernel, text)
    wrong = []
    for case in block_cases(ggml_type):
        if (case.weights_name is not None) == weighted:
            out = empty_output(case)
            run(case.rows, out, case.weights if kernel.weighted else None)
            wrong.append(differences(case, out))
    gpu.close()
    assert len(wrong) >= 23
    assert [text for text in wrong if text] == []
    assert (driver.used_bytes, driver.modules, driver.contexts) == (0, {}, 0)


@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 64, 65])
def test_any_number_of_blocks_and_no_store_beside_them(in_use: Callable[..., SimulatedDriver], n_rows: int) -> None:
    """Less than one group of threads, whole groups, and a rest; the simulator looks at both ends of all memory."""
    rows, expected, out = rows_and_result(n_rows)
    driver = in_use(KERNELS[GGMLType.Q4_0, False])
    assert (n_rows * 8) % THREADS or n_rows in (8, 64)
    quantize_rows(GGMLType.Q4_0, rows, out)
    assert out.tobytes() == expected.tobytes()
    assert driver.launches == 2  # the check, and these rows


def test_memory_is_kept_between_slabs_and_grows_only_with_them(in_use: Callable[..., SimulatedDriver]) -> None:
    driver = in_use(KERNELS[GGMLType.Q4_0, False])
    largest = 64 * (256 * 4 + 144 + 4)
    for n_rows in (64, 3, 64, 1):
        rows, expected, out = rows_and_result(n_rows)
        quantize_rows(GGMLType.Q4_0, rows, out)
        assert out.tobytes() == expected.tobytes()
    assert driver.peak_bytes <= largest


def test_a_device_without_memory_leaves_the_slab_to_the_processor(in_use: Callable[..., SimulatedDriver]) -> None:
    rows, expected, out = rows_and_result(2000)
    driver = in_use(KERNELS[GGMLType.Q4_0, False], memory_bytes=1 << 20)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            out[:] = 0
            quantize_rows(GGMLType.Q4_0, rows, out)
            assert out.tobytes() == expected.tobytes()
    failed = [line for line in lines if "OUT_OF_MEMORY" in str(line.get("error"))]
    assert [line["event"] for line in failed] == ["GPU failed, quantizing on the processor alone"]
    assert driver.used_bytes == 0


def test_a_device_that_fails_in_the_middle_is_not_asked_again(in_use: Callable[..., SimulatedDriver]) -> None:
    rows, expected, out = rows_and_result(8)
    driver = in_use(KERNELS[GGMLType.Q4_0, False])
    driver.fails_at = 2
    for _ in range(4):
        out[:] = 0
        quantize_rows(GGMLType.Q4_0, rows, out)
        assert out.tobytes() == expected.tobytes()
    assert driver.launches == 2


def test_a_device_whose_arithmetic_differs_is_not_used(
    in_use: Callable[..., SimulatedDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its driver fused what it must not: the check before the first use tells."""
    rows, expected, out = rows_and_result(8)
    kernel = KERNELS[GGMLType.Q4_0, False]
    driver = in_use(kernel)
    monkeypatch.setitem(driver.kernels, ptx(kernel, None), KERNELS[GGMLType.Q4_0, False]._replace(body=_one_bit_off))
    with structlog.testing.capture_logs() as lines:
        quantize_rows(GGMLType.Q4_0, rows, out)
    assert out.tobytes() == expected.tobytes()
    assert [line["event"] for line in lines] == ["kernel gives wrong bytes on the GPU, using the processor"]
    assert driver.launches == 1


def _one_bit_off(machine: Any, block: Any) -> None:
    from worker.models.kernels.legacy import quantize_q4_0

    quantize_q4_0(machine, block)
    block.out.put(17, machine.i32(0), 1)


def test_a_type_whose_code_does_not_load_stays_on_the_processor(in_use: Callable[..., SimulatedDriver]) -> None:
    rows, expected, out = rows_and_result(8, GGMLType.Q8_0)
    in_use()
    with structlog.testing.capture_logs() as lines:
        quantize_rows(GGMLType.Q8_0, rows, out)
    assert out.tobytes() == expected.tobytes()
    assert "INVALID_VALUE" in lines[0]["error"]


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_device_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str) -> None:
    monkeypatch.setattr(on_gpu, "DRIVER_FILES", (tmp_path,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert on_gpu.is_there()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not on_gpu.is_there()


def test_a_driver_that_does_not_answer_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(on_gpu, "DRIVER_FILES", (tmp_path,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with structlog.testing.capture_logs() as lines, on_gpu.gpu_if_there():
        assert on_gpu.kernel_of(GGMLType.Q4_0, weighted=False) is None
    assert [line["event"] for line in lines] == ["no GPU for quantization, using the processor"]

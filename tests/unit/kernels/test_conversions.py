"""Float conversions, decoding, and the search for numbers that are not finite."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.kernels.golden_blocks import block_cases
from worker.models.gguf.types import GGMLType
from worker.models.kernels import QUANTIZED_TYPES, dequantize_rows, first_non_finite, quantize_rows, widen_rows
from worker.models.kernels.compiled import CONVERSIONS, CompiledStream, conversion

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)

OF_TRAINED_WEIGHTS = frozenset({GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.Q2_0, GGMLType.Q1_0})
"""Types that an ordinary model's weights are lost in."""


def floats_of(bits: list[int]) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_are_compiled(name: str) -> None:
    assert isinstance(conversion(name), CompiledStream)


@pytest.mark.parametrize("widen", [conversion("widen_f16"), CONVERSIONS["widen_f16"]], ids=["compiled", "plain"])
def test_every_f16_widens_exactly(widen: Callable[..., Any]) -> None:
    target = np.empty(ALL_HALVES.size, np.float32)
    widen(ALL_HALVES, target)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        expected = ALL_HALVES.view(np.float16).astype(np.float32)
    assert np.array_equal(target, expected, equal_nan=True)
    assert np.array_equal(np.signbit(target), ALL_HALVES >= 0x8000)


@pytest.mark.parametrize("widen", [conversion("widen_bf16"), CONVERSIONS["widen_bf16"]], ids=["compiled", "plain"])
def test_every_bf16_becomes_the_upper_half(widen: Callable[..., Any]) -> None:
    target = np.empty(ALL_HALVES.size, np.float32)
    widen(ALL_HALVES, target)
    assert np.array_equal(target.view(np.uint32), ALL_HALVES.astype(np.uint32) << 16)


NARROWING = {
    # bits of float32: (F16, BF16)
    0x00000000: (0x0000, 0x0000),
    0x80000000: (0x8000, 0x8000),
    0x3F800000: (0x3C00, 0x3F80),
    0x3F801000: (0x3C00, 0x3F80),  # half a step of F16 above 1: to even, down
    0x3F803000: (0x3C02, 0x3F80),  # one and a half: to even, up
    0x3F801001: (0x3C01, 0x3F80),
    0x3F808000: (0x3C04, 0x3F80),  # half a step of BF16 above 1: to even, down
    0x3F818000: (0x3C0C, 0x3F82),
    0x477FE000: (0x7BFF, 0x4780),  # 65504, the largest F16
    0x477FEFFF: (0x7BFF, 0x4780),
    0x477FF000: (0x7C00, 0x4780),
    0x33800000: (0x0001, 0x3380),  # 2**-24, the smallest F16
    0x33000000: (0x0000, 0x3300),  # half of it: to even, zero
    0x33000001: (0x0001, 0x3300),
    0x387FC000: (0x03FF, 0x3880),  # the largest subnormal F16
    0x387FF000: (0x0400, 0x3880),
    0x00000001: (0x0000, 0x0000),
    0x7F7FFFFF: (0x7C00, 0x7F80),
    0x7F800000: (0x7C00, 0x7F80),
    0xFF800000: (0xFC00, 0xFF80),
    0x7F800001: (0x7E00, 0x7FC0),  # NaN: the payload is lost, or made quiet
    0xFFC12345: (0xFE00, 0xFFC1),
}


@pytest.mark.parametrize("kind", ["compiled", "plain"])
@pytest.mark.parametrize(("name", "column"), [("narrow_f16", 0), ("narrow_bf16", 1)])
def test_narrowing_rounds_to_even(name: str, column: int, kind: str) -> None:
    narrow = conversion(name) if kind == "compiled" else CONVERSIONS[name]
    source = floats_of(list(NARROWING) * 2)  # more than one vector and a rest
    target = np.empty(source.size, np.uint16)
    narrow(source, target)
    expected = [row[column] for row in NARROWING.values()] * 2
    assert [hex(bits) for bits in target] == [hex(bits) for bits in expected]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 4099])
def test_rows_of_any_length_go_there_and_back(length: int) -> None:
    numbers = np.random.default_rng(length).standard_normal((3, length)).astype(np.float16).astype(np.float32)
    out = np.zeros((3, 2 * length), np.uint8)
    quantize_rows(GGMLType.F16, numbers, out)
    assert np.array_equal(widen_rows(GGMLType.F16, out), numbers)
    assert np.array_equal(dequantize_rows(GGMLType.F16, out), numbers)


def test_widening_takes_odd_addresses_and_a_given_output() -> None:
    raw = np.zeros(1 + 6, np.uint8)[1:]
    raw[:] = np.array([1.5, -2, 0.25], np.float16).view(np.uint8)
    out = np.empty((1, 3), np.float32)
    assert widen_rows(GGMLType.F16, raw.reshape(1, 6), out) is out
    assert out.tolist() == [[1.5, -2.0, 0.25]]


def test_f32_is_not_copied() -> None:
    raw = np.array([[1.0, -2.5]], np.float32).view(np.uint8)
    widened = widen_rows(GGMLType.F32, raw)
    assert widened.tolist() == [[1.0, -2.5]]
    assert np.shares_memory(widened, raw)


@pytest.mark.parametrize("position", [0, 1, 65535, 65536, 100_000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_number_that_is_not_finite(position: int, value: float) -> None:
    numbers = np.zeros((1, 100_001), np.float32)
    assert first_non_finite(numbers) is None
    numbers[0, position] = value
    numbers[0, 100_000] = np.nan
    assert first_non_finite(numbers) == position


@pytest.mark.parametrize("ggml_type", sorted(QUANTIZED_TYPES), ids=lambda t: t.name)
def test_decoded_numbers_are_near_the_originals(ggml_type: GGMLType) -> None:
    case = next(case for case in block_cases(ggml_type) if case.input_name == "normal" and case.weights_name != "zeros")
    out = np.empty((case.rows.shape[0], case.rows.shape[1] // ggml_type.block_length * ggml_type.block_bytes), np.uint8)
    quantize_rows(ggml_type, case.rows, out, case.weights)
    decoded = dequantize_rows(ggml_type, out)
    assert decoded.shape == case.rows.shape
    bits = 8 * ggml_type.block_bytes / ggml_type.block_length
    error = np.sqrt(((decoded - case.rows) ** 2).mean() / (case.rows**2).mean())
    assert error < (1 if ggml_type in OF_TRAINED_WEIGHTS else 1.6 * 2 ** (1 - bits))


@pytest.mark.parametrize("ggml_type", sorted(OF_TRAINED_WEIGHTS), ids=lambda t: t.name)
def test_weights_trained_on_a_types_values_come_back_as_they_are(ggml_type: GGMLType) -> None:
    random = np.random.default_rng(int(ggml_type))
    rows = random.choice([-1.0, 1.0] if ggml_type is GGMLType.Q1_0 else [-1.0, 0.0, 1.0], (3, 512)).astype(np.float32)
    rows *= np.exp2(random.integers(-12, 3, (3, 512 // ggml_type.block_length))).repeat(ggml_type.block_length, 1)
    out = np.empty((3, 512 // ggml_type.block_length * ggml_type.block_bytes), np.uint8)
    quantize_rows(ggml_type, rows.astype(np.float32), out)
    assert np.array_equal(dequantize_rows(ggml_type, out), rows)


def test_decoding_q8_0_by_hand() -> None:
    block = np.zeros(34, np.uint8)
    block[:2] = np.array([0.5], np.float16).view(np.uint8)
    block[2:6] = np.array([1, -1, 127, -128], np.int8).view(np.uint8)
    assert dequantize_rows(GGMLType.Q8_0, block.reshape(1, 34))[0, :5].tolist() == [0.5, -0.5, 63.5, -64.0, 0.0]

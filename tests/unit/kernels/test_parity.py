"""Kernels against the reference on numbers and shapes that nobody picked by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import quantize_rows
from worker.models.kernels.catalogue import KERNELS
from worker.models.kernels.compiled import quantize_by_reference
from worker.models.kernels.grids import GRID_TYPES
from worker.models.kernels.self_check import DIGESTS, digest_of

LARGEST_EXPONENT = {True: 40, False: 125}
"""Binary exponent of the largest numbers tried; ggml ends the process where sums of the grid types overflow."""


@st.composite
def rows_and_weights(draw: Any, ggml_type: GGMLType, weighted: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of random shape, each with a pattern and a magnitude of its own, and weights of a wide range."""
    n_rows = draw(st.integers(1, 5))
    length = ggml_type.block_length * draw(st.integers(1, 5 if ggml_type.block_length == 32 else 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = np.stack([_pattern(draw, random, length) for _ in range(n_rows)])
    reach = LARGEST_EXPONENT[ggml_type in GRID_TYPES]
    # multiplying by a power of two keeps ties and patterns; far down, numbers become denormal and then zero
    exponents = [draw(st.one_of(st.just(-6), st.integers(-140, reach))) for _ in range(n_rows)]
    rows = np.ldexp(rows, np.array(exponents)[:, None]).clip(-3e38, 3e38).astype(np.float32)
    weights = None
    if weighted:
        spread = draw(st.sampled_from([0.0, 1.0, 4.0]))
        weights = np.exp(random.normal(0, spread, length))
        weights[random.random(length) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
        weights = weights.astype(np.float32)
    return rows, weights


def _pattern(draw: Any, random: np.random.Generator, length: int) -> np.ndarray:
    kind = draw(st.sampled_from(["normal", "heavy", "positive", "constant", "zero", "spike", "few", "mixed"]))
    if kind == "normal":
        return random.standard_normal(length)
    if kind == "heavy":
        return random.standard_t(2, length).clip(-1e6, 1e6)
    if kind == "positive":
        return random.uniform(0.5, 2, length)
    if kind == "constant":
        return np.full(length, random.choice([-1.0, 1.0, 0.3]))
    if kind == "zero":
        return np.zeros(length)
    if kind == "spike":
        return np.where(np.arange(length) == random.integers(length), 1.0, 0.0)
    if kind == "few":  # many equal numbers: ties everywhere
        return random.choice([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0], length)
    return random.standard_normal(length) * np.exp2(random.integers(-30, 3, length))


@pytest.mark.parametrize(("ggml_type", "weighted"), KERNELS, ids=lambda value: getattr(value, "name", str(value)))
def test_kernel_equals_reference(ggml_type: GGMLType, weighted: bool) -> None:
    @settings(max_examples=25, deadline=None, database=None)
    @given(rows_and_weights(ggml_type, weighted))
    def check(drawn: tuple[np.ndarray, np.ndarray | None]) -> None:
        rows, weights = drawn
        shape = (rows.shape[0], row_bytes(ggml_type, rows.shape[1]))
        made, expected = np.full(shape, 0x5A, np.uint8), np.zeros(shape, np.uint8)
        quantize_rows(ggml_type, rows, made, weights)
        quantize_by_reference(ggml_type, rows, expected, weights)
        assert np.array_equal(made, expected), np.flatnonzero(made.reshape(-1) != expected.reshape(-1))[:8]

    check()


@pytest.mark.parametrize("n_blocks", [1, 15, 16, 17, 31, 32, 33])
def test_any_number_of_blocks(n_blocks: int) -> None:
    """Groups of 16 with and without a rest, as one row and as one row each."""
    random = np.random.default_rng(n_blocks)
    numbers = random.standard_normal(n_blocks * 256).astype(np.float32)
    expected = np.empty((1, n_blocks * 144), np.uint8)
    quantize_by_reference(GGMLType.Q4_K, numbers[None], expected, None)
    for n_rows in (1, n_blocks):
        out = np.zeros((n_rows + 1, n_blocks * 144 // n_rows), np.uint8)
        quantize_rows(GGMLType.Q4_K, numbers.reshape(n_rows, -1), out[:n_rows])
        assert out[:n_rows].tobytes() == expected.tobytes()
        assert not out[n_rows:].any()


@pytest.mark.parametrize(("ggml_type", "weighted"), KERNELS, ids=lambda value: getattr(value, "name", str(value)))
def test_digests_of_the_self_check_are_the_references(ggml_type: GGMLType, weighted: bool) -> None:
    kernel = KERNELS[ggml_type, weighted]

    def quantize(rows: np.ndarray, out: np.ndarray, weights: np.ndarray | None) -> None:
        quantize_by_reference(ggml_type, rows, out, weights)

    made = digest_of(quantize, kernel.length, kernel.size_bytes, weighted=kernel.weighted)
    assert made == DIGESTS[kernel.name]

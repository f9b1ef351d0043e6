"""Golden block cases through the public functions, the reference and the portable search."""

import hashlib

import numpy as np
import pytest

from tests.unit.kernels.golden_blocks import BlockCase, block_cases
from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import FLOAT_TYPES, QUANTIZED_TYPES, kernel_kind, quantize_rows
from worker.models.kernels.catalogue import KERNELS
from worker.models.kernels.compiled import CompiledKernel, quantize_by_reference
from worker.models.kernels.compiler import load
from worker.models.kernels.grids import GRID_TYPES
from worker.models.kernels.point_search import Permutes
from worker.models.kernels.processor import this_processor

TYPES = sorted(QUANTIZED_TYPES | FLOAT_TYPES - {GGMLType.F32})
SLOW_REFERENCE = GRID_TYPES | {GGMLType.IQ4_NL, GGMLType.IQ4_XS}
SOME_INPUTS = ("student3", "halves", "half_zero_columns", "near_f16_max", "tiny_1e-15_bf16")
"""For what is too slow to go through all inputs."""


def differences(case: BlockCase, made: np.ndarray) -> str:
    """Empty if the bytes are ggml's, or where they differ first."""
    if hashlib.sha256(made.tobytes()).hexdigest() == case.sha256:
        return ""
    return f"{case}: " + first_difference(made.reshape(-1)[: case.first_bytes.size], case.first_bytes, case.ggml_type)


def first_difference(made: np.ndarray, expected: np.ndarray, ggml_type: GGMLType) -> str:
    where = np.flatnonzero(expected != made)
    size = ggml_type.block_bytes
    return f"{where.size} bytes of the first rows differ, first in blocks {where[:8] // size} at {where[:8] % size}"


def empty_output(case: BlockCase) -> np.ndarray:
    n_rows, row_length = case.rows.shape
    return np.full((n_rows, row_bytes(case.ggml_type, row_length)), 0xA5, np.uint8)


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
def test_kernels_write_what_ggml_writes(ggml_type: GGMLType) -> None:
    cases = block_cases(ggml_type)
    assert len(cases) >= 23
    wrong = []
    for case in cases:
        out = empty_output(case)
        quantize_rows(ggml_type, case.rows, out, case.weights)
        wrong.append(differences(case, out))
    assert [text for text in wrong if text] == []


@pytest.mark.parametrize(("ggml_type", "weighted"), KERNELS, ids=lambda value: getattr(value, "name", str(value)))
def test_every_kernel_is_compiled_and_passes_its_check(ggml_type: GGMLType, weighted: bool) -> None:
    assert kernel_kind(ggml_type, weighted=weighted) == "compiled"


@pytest.mark.parametrize("ggml_type", sorted(QUANTIZED_TYPES), ids=lambda t: t.name)
def test_reference_writes_what_ggml_writes(ggml_type: GGMLType) -> None:
    wrong = []
    for case in block_cases(ggml_type):
        if ggml_type in SLOW_REFERENCE and case.input_name not in SOME_INPUTS:
            continue
        out = empty_output(case)
        quantize_by_reference(ggml_type, case.rows, out, case.weights)
        wrong.append(differences(case, out))
    assert [text for text in wrong if text] == []


@pytest.mark.parametrize("ggml_type", [GGMLType.IQ2_S, GGMLType.IQ3_S, GGMLType.IQ1_M], ids=lambda t: t.name)
def test_search_without_permutations_writes_what_ggml_writes(ggml_type: GGMLType) -> None:
    kernel = KERNELS[ggml_type, False]
    portable = CompiledKernel(kernel, load(kernel, None, this_processor()._replace(permutes=Permutes.NONE)), None)
    wrong = []
    for case in block_cases(ggml_type):
        if case.weights_name is None:
            out = empty_output(case)
            portable(case.rows, out, None)
            wrong.append(differences(case, out))
    assert len(wrong) == 23
    assert [text for text in wrong if text] == []

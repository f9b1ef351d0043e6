"""Parts of the kernels' language that no golden block would show alone."""

from itertools import pairwise

import numpy as np
import pytest

from tests.unit.kernels.numpy_machine import NumpyMachine, NumpyTable
from worker.models.gguf.types import GGMLType
from worker.models.kernels.grids import GRID_TYPES, RULES, grid_of, search_table
from worker.models.kernels.iq4 import VALUES, nearest_index
from worker.models.kernels.lanes import Float, Int
from worker.models.kernels.machine import Machine
from worker.models.kernels.rounding import half_bits, half_value, nearest_int, nearest_level


def floats(values: list[float]) -> Float:
    return Float(NumpyMachine(len(values)), np.array(values, np.float32))


def test_nearest_int_rounds_to_even_and_wraps_as_ggml_does() -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 3.49, 4194303.0, np.inf, -np.inf, np.nan]
    with np.errstate(invalid="ignore"):
        assert nearest_int(floats(values)).raw.tolist()[:7] == [0, 2, 2, 0, -2, 3, 4194303]
        assert nearest_int(floats(values)).raw.tolist()[7:] == [-4194304, -4194304, 0]
        assert nearest_level(floats(values), 0, 15).raw.tolist() == [0, 2, 2, 0, 0, 3, 15, 0, 0, 0]


def test_half_bits_and_values_agree_with_numpy() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    numbers = halves.view(np.float16).astype(np.float32)
    machine = NumpyMachine(halves.size)
    with np.errstate(all="ignore"):
        back = half_value(Int(machine, halves.astype(np.int32))).raw
        finite = np.isfinite(numbers)
        assert np.array_equal(back[finite].view(np.uint32), numbers[finite].view(np.uint32))
        bits = half_bits(Float(machine, numbers)).raw
    assert np.array_equal(bits[finite], halves[finite])


def test_truncation_is_defined_for_every_float() -> None:
    values = [1.9, -1.9, 2147483520.0, 2147483648.0, np.inf, np.nan]
    assert floats(values).truncated().raw.tolist() == [1, -1, 2147483520, 0, 0, 0]


def test_nearest_iq4_value_is_the_one_of_the_binary_search() -> None:
    """ggml compares the distances to both neighbours; here it is one comparison with their middle."""

    def searched(x: np.float32) -> int:
        upper = next((k for k, value in enumerate(VALUES) if x < value), len(VALUES) - 1)
        if upper == 0:
            return 0
        return upper - 1 if x - np.float32(VALUES[upper - 1]) < np.float32(VALUES[upper]) - x else upper

    middles = np.array([(a + b) / 2 for a, b in pairwise(VALUES)], np.float32)
    near = [np.nextafter(middles, np.float32(side)) for side in (-1000, 1000)]
    numbers = np.concatenate((middles, *near, np.linspace(-140, 140, 4001), VALUES)).astype(np.float32)
    machine = NumpyMachine(numbers.size)
    found = nearest_index(machine, Float(machine, numbers)).raw
    assert found.tolist() == [searched(x) for x in numbers]
    assert nearest_index(NumpyMachine(1), floats([np.nan])).raw.tolist() == [15]


@pytest.mark.parametrize("ggml_type", [GGMLType.IQ2_XS, GGMLType.IQ3_S], ids=lambda t: t.name)
def test_point_search_is_the_loop_of_the_base_class(ggml_type: GGMLType) -> None:
    """Also with errors that are all equal, and all infinite but one."""
    table, rule, lanes = search_table(ggml_type), RULES[ggml_type], 64
    random = np.random.default_rng(4)
    machine = NumpyMachine(lanes)
    entries = Int(machine, table[random.integers(0, rule.n_levels**rule.group, lanes)])
    errors = random.random((rule.group, rule.n_levels, lanes), np.float32)
    errors[:, :, :16] = 1.0
    raw = [[Float(machine, level) for level in element] for element in errors]
    one_by_one = Machine.nearest_point(machine, NumpyTable(machine, table), entries, raw)
    at_once = machine.nearest_point(NumpyTable(machine, table), entries, raw)
    assert (entries.raw < 0).sum() > 16
    assert np.array_equal(one_by_one.raw, at_once.raw)


@pytest.mark.parametrize("ggml_type", sorted(GRID_TYPES), ids=lambda t: t.name)
def test_grid_tables(ggml_type: GGMLType) -> None:
    """The first point is level 0 everywhere, every combination leads to a point, lists are full vectors."""
    grid, table = grid_of(ggml_type), search_table(ggml_type)
    assert not grid.levels[0].any()
    assert table[0] == 0
    n_codes = len(grid.codes)
    assert np.flatnonzero(table[:n_codes] < 0).size == n_codes - len(grid.levels)
    position = n_codes
    for start in -table[:n_codes][table[:n_codes] < 0]:
        assert start == position
        position += 1 + -(-int(table[start]) // 16) * 16
    assert position == table.size
    assert (table[n_codes:] >> 16).max() < len(grid.levels)

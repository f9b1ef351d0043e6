"""Weights that training left on a lattice are in the file as they are in the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from api_client.contract.fit import AnyQuantType
from api_client.contract.quant_types import QuantType
from tests.quantized import on_lattice
from tests.tiny import tiny_base
from tests.unit.quantize.test_quantize_resume import StopAfter
from worker.models.convert.pipeline import convert
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import dequantize_rows, quantize_rows, widen_rows
from worker.models.mixture.recipe import Recipes
from worker.models.quantize.engine import quantize_file
from worker.models.quantize.lattice import Exactness, exactness_facts, find_lattice, hit_lattice
from worker.setting import WorkSetting
from worker.stop import StopRequested
from worker.storage.checksums import sha256_file

T = GGMLType
Array = NDArray[np.float32]
FORMS = (T.Q4_0, T.Q4_1, T.Q8_0)
BLOCKS = 4096
HIT = Recipes(hits_lattice=True)


def rounded(values: Array, dtype: GGMLType) -> Array:
    """To a dtype and back, by ggml."""
    narrow = np.empty((len(values), row_bytes(dtype, values.shape[1])), np.uint8)
    quantize_rows(dtype, np.ascontiguousarray(values, np.float32), narrow)
    return widen_rows(dtype, narrow).copy()


def scales(dtype: GGMLType, count: int = BLOCKS) -> Array:
    drawn = np.random.default_rng(1).lognormal(-5, 1, (count, 1)).astype(np.float32)
    return rounded(drawn, dtype)


def levels(lowest: int = -8, highest: int = 7) -> Array:
    drawn = np.random.default_rng(2).normal(0, 3, (BLOCKS, 32))
    return np.clip(np.rint(drawn), lowest, highest).astype(np.float32)


def made(rows: Array, target: GGMLType) -> NDArray[np.uint8]:
    data = np.empty((len(rows), row_bytes(target, rows.shape[1])), np.uint8)
    quantize_rows(target, rows, data)
    return data


def in_rows(blocks: Array) -> Array:
    return np.ascontiguousarray(blocks.reshape(-1, 256))


SIGNS = np.where(np.random.default_rng(3).random((BLOCKS, 1)) < 0.5, -1, 1).astype(np.float32)
# name -> weights before rounding to the checkpoint's dtype, that dtype
LATTICES: dict[str, tuple[Array, GGMLType]] = {
    "float16 scales": (scales(T.F16) * levels(), T.BF16),
    "negative scales": (scales(T.F16) * SIGNS * levels(), T.BF16),
    "no block reaches -8": (scales(T.F16) * levels(-7), T.BF16),
    "few levels": (scales(T.F16) * levels(-3, 2), T.BF16),
    "one level": (scales(T.F16) * levels(0, 1), T.BF16),
    "zeros": (scales(T.F16) * levels() * (SIGNS > 0), T.BF16),
    "bfloat16 scales": (scales(T.BF16) * levels(), T.BF16),
    "in float16": (scales(T.F16) * levels(), T.F16),
    "in float32": (scales(T.F16) * levels(), T.F32),
    "int4 groups of 128": (np.repeat(scales(T.BF16, BLOCKS // 4), 4, axis=0) * levels(), T.BF16),
    "powers of two": (np.exp2(np.rint(np.log2(scales(T.F16)))).astype(np.float32) * levels(), T.F16),
}


@pytest.mark.parametrize("target", FORMS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", LATTICES)
def test_every_weight_of_a_lattice_is_given_back(name: str, target: GGMLType) -> None:
    """By ggml's own arithmetic, rounded to the checkpoint's dtype; llama-quantize's blocks mostly do not."""
    blocks, dtype = LATTICES[name]
    rows = in_rows(rounded(blocks, dtype))
    data = made(rows, target)
    counts = hit_lattice(target, rows, data, dtype)
    assert np.array_equal(rounded(dequantize_rows(target, data), dtype), rows)
    assert (counts.weights, counts.exact, counts.on_lattice) == (rows.size,) * 3
    in_dtype = T.BF16 if np.array_equal(rounded(rows, T.BF16), rows) else dtype
    stock = np.count_nonzero(rounded(dequantize_rows(target, made(rows, target)), in_dtype) == rows)
    assert counts.stock == stock
    assert stock < rows.size or name == "one level"  # which is the lowest, as ggml has it
    assert find_lattice(rows, dtype) is T.Q4_0


def test_a_file_wider_than_the_checkpoint_is_compared_in_the_checkpoints_dtype() -> None:
    rows = in_rows(rounded(LATTICES["float16 scales"][0], T.BF16))
    assert hit_lattice(T.Q4_0, rows, made(rows, T.Q4_0), T.F32).exact == rows.size


def test_blocks_that_are_exact_already_keep_their_bytes() -> None:
    reaching = levels(-8, 7)
    reaching[:, 0] = -8  # as ggml has it: the largest weight over -8
    rows = in_rows(scales(T.BF16) * reaching)
    before = made(rows, T.Q4_0)
    data = before.copy()
    counts = hit_lattice(T.Q4_0, rows, data, T.F32)
    assert counts == Exactness(*(rows.size,) * 4)
    assert np.array_equal(data, before)


@pytest.mark.parametrize("target", [*FORMS, T.MXFP4], ids=lambda kind: kind.name)
def test_weights_on_no_lattice_are_left_alone(target: GGMLType) -> None:
    rows = in_rows(rounded(np.random.default_rng(4).normal(0, 0.02, (BLOCKS, 32)).astype(np.float32), T.BF16))
    before = made(rows, target)
    data = before.copy()
    counts = hit_lattice(target, rows, data, T.BF16)
    assert np.array_equal(data, before)
    assert counts.exact == counts.stock < rows.size
    assert counts.on_lattice == 0
    assert find_lattice(rows, T.BF16) is None


def test_a_scale_that_no_float16_is_costs_its_rounding_and_no_more() -> None:
    """Levels are the training's; ``d * q`` moves by the rounding of d, which every file of the type has."""
    drawn = np.random.default_rng(5).uniform(0.001, 0.1, (BLOCKS, 1)).astype(np.float32)
    rows = in_rows(drawn * levels(-7))
    data = made(rows, T.Q4_0)
    before = dequantize_rows(T.Q4_0, data).copy()
    counts = hit_lattice(T.Q4_0, rows, data, T.F32)
    after = dequantize_rows(T.Q4_0, data)
    assert counts.on_lattice == rows.size > counts.exact
    assert np.abs(after - rows).max() <= np.abs(rows).max() * 2**-11
    assert np.all(np.abs(after - rows) <= np.abs(rows) * 2.0**-11)
    assert np.square(after - rows).sum() < np.square(before - rows).sum() / 1000


def test_a_block_of_both_extremes_is_on_no_lattice_of_sixteen_levels() -> None:
    block = np.zeros((8, 32), np.float32)
    block[:, :17] = np.arange(-8, 9) * 0.5
    rows = in_rows(block)
    before = made(rows, T.Q4_0)
    data = before.copy()
    assert hit_lattice(T.Q4_0, rows, data, T.F32).on_lattice == 0
    assert np.array_equal(data, before)


def test_mxfp4_is_exact_by_itself_and_known_as_what_it_is() -> None:
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    generator = np.random.default_rng(6)
    chosen = generator.choice(values, (BLOCKS, 32)) * generator.choice(np.array([-1, 1], np.float32), (BLOCKS, 32))
    rows = in_rows(chosen * np.exp2(generator.integers(-12, 0, (BLOCKS, 1))).astype(np.float32))
    counts = hit_lattice(T.MXFP4, rows, made(rows, T.MXFP4), T.BF16)
    assert counts == Exactness(*(rows.size,) * 4)
    assert find_lattice(rows, T.BF16) is T.MXFP4


def test_facts_name_the_tensors_that_differ() -> None:
    exact, other = Exactness(64, 64, 10, 64), Exactness(64, 60, 4, 32)
    assert exactness_facts({"a": exact, "b": other}) == {
        "weights": 128, "exact": 124, "stock": 14, "on_lattice": 96, "tensors": 2, "exact_tensors": 1,
        "inexact": {"b": 4},
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized file of a checkpoint of quantization-aware training."""
    directory = tmp_path_factory.mktemp("lattice")
    plain = tiny_base(directory / "plain", hidden_size=256, intermediate_size=512)
    convert(on_lattice(plain, directory / "model"), directory / "m.gguf")
    return directory / "m.gguf"


def quantized(source: Path, folder: Path, recipes: Recipes, **setting: object) -> tuple[Path, dict[str, Exactness]]:
    outputs: dict[AnyQuantType, Path] = {QuantType.Q4_0: folder / "m-Q4_0.gguf"}
    folder.mkdir(exist_ok=True)
    result = quantize_file(source, outputs, recipes=recipes, setting=WorkSetting(threads=1, **setting))  # type: ignore[arg-type]
    outcome = result.outcomes[QuantType.Q4_0]
    assert {kind for kind in result.lattices.values() if kind} <= {T.Q4_0}
    return outcome.path, dict(outcome.exactness or {})


def test_a_file_equals_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    path, exactness = quantized(trained, tmp_path, HIT)
    with open_gguf(path) as file, open_gguf(trained) as unquantized:
        held = [tensor for tensor in file.tensors if tensor.type is T.Q4_0]
        assert {tensor.name for tensor in held} == set(exactness)
        assert len(held) == 15
        for tensor in held:
            values = rounded(dequantize_rows(T.Q4_0, file.tensor_bytes(tensor)), T.BF16)
            raw = unquantized.tensor_bytes(unquantized.by_name[tensor.name])
            assert np.array_equal(values, widen_rows(T.BF16, raw)), tensor.name
    counts = exactness_facts(exactness)
    assert counts["exact"] == counts["weights"] == counts["on_lattice"]
    assert counts["stock"] < 0.6 * counts["weights"]


def test_unasked_for_every_byte_is_llama_quantizes(trained: Path, tmp_path: Path) -> None:
    plain, exactness = quantized(trained, tmp_path / "plain", Recipes())
    assert exactness == {}
    hit, _ = quantized(trained, tmp_path / "hit", HIT)
    assert plain.stat().st_size == hit.stat().st_size
    assert sha256_file(plain) != sha256_file(hit)
    with open_gguf(plain) as file, open_gguf(trained) as unquantized:
        for tensor in file.tensors:
            if tensor.type is T.Q4_0:
                rows = widen_rows(T.BF16, unquantized.tensor_bytes(unquantized.by_name[tensor.name]))
                assert np.array_equal(file.tensor_bytes(tensor), made(rows, T.Q4_0))


@pytest.mark.parametrize("then", [HIT, Recipes()], ids=["the same", "unasked"])
def test_stopped_work_goes_on_with_its_counts_and_only_as_the_same(
    trained: Path, tmp_path: Path, then: Recipes
) -> None:
    with pytest.raises(StopRequested):
        quantized(trained, tmp_path / "stopped", HIT, should_stop=StopAfter(9))
    path, exactness = quantized(trained, tmp_path / "stopped", then)
    expected, counts = quantized(trained, tmp_path / "whole", then)
    assert sha256_file(path) == sha256_file(expected)
    assert exactness == counts


@pytest.mark.parametrize("wrong", [[1], ["a", 1, 1, 1], 3], ids=str)
def test_a_journal_with_other_counts_costs_work_alone(trained: Path, tmp_path: Path, wrong: object) -> None:
    with pytest.raises(StopRequested):
        quantized(trained, tmp_path / "stopped", HIT, should_stop=StopAfter(9))
    journal = tmp_path / "stopped" / "m-Q4_0.gguf.journal"
    head, *lines = journal.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert any("exactness" in entry for entry in entries)
    changed = [json.dumps(entry | ({"exactness": wrong} if "exactness" in entry else {})) for entry in entries]
    journal.write_text("\n".join([head, *changed]) + "\n")
    path, exactness = quantized(trained, tmp_path / "stopped", HIT)
    expected, counts = quantized(trained, tmp_path / "whole", HIT)
    assert (sha256_file(path), exactness) == (sha256_file(expected), counts)

"""Prices against the formula, computed from the bytes that quantize_file writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from worker.models.fit.pricing import price_tensors
from worker.models.gguf.metadata import string_value, uint32_value
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.gguf.writer import write_gguf
from worker.models.imatrix.sums import TensorSums, mean_squares
from worker.models.kernels import dequantize_rows
from worker.models.quantize.engine import quantize_file
from worker.models.sensitivity.gguf_form import read_sensitivity
from worker.models.sensitivity.sums import Sensitivity, TensorSensitivity

SHAPES = {
    "token_embd.weight": (256, 640),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.ffn_down_exps.weight": (512, 64, 3),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.attn_norm.weight": (256,),
}
TYPES = [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.IQ3_XXS]


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A file of one block with a tied embedding, and its values ``(m, rows, columns)``."""
    generator = np.random.default_rng(3)
    values = {name: generator.standard_normal(shape[::-1]).astype(np.float32) for name, shape in SHAPES.items()}
    metadata = {"general.architecture": string_value("llama"), "llama.block_count": uint32_value(1)}
    tensors = [(TensorSpec(name, shape, GGMLType.F32), values[name]) for name, shape in SHAPES.items()]
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata, tensors)
    return path, {name: each.reshape(-1, *each.shape[-2:]) for name, each in values.items() if each.ndim > 1}


def sensitivity(*, gradients: bool = True) -> Sensitivity:
    generator = np.random.default_rng(4)

    def entry(columns: int, rows: int, matrices: int = 1) -> TensorSensitivity:
        sums = TensorSums(
            generator.random((matrices, columns)).astype(np.float32) * 50, np.full(matrices, 20, np.float32)
        )
        return TensorSensitivity(sums, generator.random((matrices, rows)).astype(np.float32) if gradients else None)

    entries = {name: entry(shape[0], *shape[1:]) for name, shape in SHAPES.items() if len(shape) > 1}
    return Sensitivity("text", "", 20, 10, "", 0, {**entries, "output.weight": entry(256, 640)})


def predicted(part: TensorSensitivity, change: np.ndarray) -> float:
    assert part.out_grad2 is not None
    means = part.inputs.in_sum2 / part.inputs.counts[:, None]
    return 0.5 * float(np.einsum("mo,mi,moi->", part.out_grad2, means, np.square(change, dtype=np.float64)))


def test_prices_are_the_formula_over_the_bytes_that_files_hold(
    model: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path, values = model
    given = sensitivity()
    matrix = mean_squares(given.matrix(), "m.gguf")
    quantize_file(path, {QuantType.Q4_K_S: tmp_path / "q.gguf"}, imatrix=matrix)
    prices = {tensor.name: tensor for tensor in price_tensors(path, given, TYPES, matrix).tensors}
    assert list(prices) == [name for name, shape in SHAPES.items() if len(shape) > 1]
    with open_gguf(tmp_path / "q.gguf") as written:
        for name, shape in SHAPES.items():
            tensor = written.by_name[name]
            if len(shape) == 1 or tensor.type is not GGMLType.Q4_K:
                continue
            decoded = dequantize_rows(tensor.type, written.tensor_bytes(tensor)).reshape(values[name].shape)
            expected = predicted(given.entries[name], decoded - values[name])
            if name == "token_embd.weight":
                expected += predicted(given.entries["output.weight"], decoded - values[name])
            assert prices[name].kld_of["Q4_K"] == pytest.approx(expected, rel=1e-4)
            assert prices[name].bytes_of["Q4_K"] == tensor.size_bytes
            assert not prices[name].error_of
    assert set(prices["blk.0.attn_q.weight"].kld_of) == {"Q4_K", "Q8_0", "IQ3_XXS", "F16"}
    assert set(prices["blk.0.ffn_up.weight"].kld_of) == {"Q5_0", "Q8_0", "IQ4_NL", "F16"}  # rows of 96
    assert 0 < prices["blk.0.attn_q.weight"].kld_of["Q8_0"] < prices["blk.0.attn_q.weight"].kld_of["Q4_K"]


def test_a_sample_of_rows_tells_the_price_and_its_error(model: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = model
    given = sensitivity()
    matrix = mean_squares(given.matrix(), "m.gguf")
    whole, sampled, again = (
        price_tensors(path, given, [GGMLType.Q4_K], matrix, sample_elements=elements)
        for elements in (1 << 20, 1 << 13, 1 << 13)
    )
    assert sampled == again
    off = []
    for one, other in zip(whole.tensors, sampled.tensors, strict=True):
        if "Q4_K" in other.error_of:
            off.append((one.kld_of["Q4_K"] - other.kld_of["Q4_K"]) / other.error_of["Q4_K"])
            assert other.kld_of["Q4_K"] == pytest.approx(one.kld_of["Q4_K"], rel=0.2)
    assert len(off) == 3
    assert max(map(abs, off)) < 4


def test_without_a_matrix_types_that_need_one_are_not_priced(model: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = model
    given = sensitivity(gradients=False)
    prices = {tensor.name: tensor for tensor in price_tensors(path, given, TYPES, None).tensors}
    assert "IQ3_XXS" not in prices["blk.0.attn_q.weight"].kld_of
    assert "IQ3_XXS" in prices["token_embd.weight"].kld_of  # as llama-quantize has it
    # without gradients: half the relative squared error of the outputs, which 8 bits keep below 1e-4
    assert 0 < prices["blk.0.attn_q.weight"].kld_of["Q8_0"] < 1e-4 < prices["blk.0.attn_q.weight"].kld_of["Q4_K"] < 0.05


def test_sensitivities_of_another_model_are_refused(model: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path, _ = model
    given = sensitivity()
    entries = {**given.entries, "blk.0.attn_q.weight": given.entries["blk.0.ffn_up.weight"]}
    other = Sensitivity("text", "", 20, 10, "", 0, entries)
    with pytest.raises(PackagingError, match="attn_q") as refused:
        price_tensors(path, other, TYPES, None)
    assert refused.value.code is ErrorCode.SENSITIVITY_INVALID
    with pytest.raises(PackagingError, match="holds no sensitivities") as refused:
        read_sensitivity(path)
    assert refused.value.code is ErrorCode.SENSITIVITY_INVALID
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:100])
    with pytest.raises(PackagingError) as refused:
        read_sensitivity(tmp_path / "cut.gguf")
    assert refused.value.code is ErrorCode.SENSITIVITY_INVALID

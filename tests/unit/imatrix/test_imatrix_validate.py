"""A matrix fits a model by the names and sizes of its entries."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.validate import validate_imatrix
from worker.models.mixture.policy import ImatrixNeed
from worker.models.quantize.imatrix_data import ImatrixData

SHAPES = {
    "token_embd.weight": (32, 100),
    "output_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.ffn_gate_inp.weight": (32, 4),
    "blk.1.attn_q.weight": (32, 32),
    "blk.1.ffn_down_exps.weight": (48, 32, 4),
}
MODEL = [TensorSpec(name, shape, GGMLType.F16) for name, shape in SHAPES.items()]
FITTING = {"blk.0.attn_q.weight": (1, 32), "blk.1.attn_q.weight": (1, 32), "blk.1.ffn_down_exps.weight": (4, 48)}


def matrix(shapes: Mapping[str, tuple[int, ...]]) -> ImatrixData:
    return ImatrixData("m.gguf", None, 1, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def validate(shapes: Mapping[str, tuple[int, ...]], needs: Any = ()) -> Any:
    return validate_imatrix(matrix(shapes), "llama", MODEL, needs)


def refusal(shapes: Mapping[str, tuple[int, ...]], needs: Any = ()) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        validate(shapes, needs)
    return caught.value


def test_a_fitting_matrix_covers_what_is_quantized() -> None:
    coverage = validate(FITTING)
    assert coverage.covered == tuple(FITTING)
    assert coverage.uncovered == ("token_embd.weight",)
    assert coverage.unknown == ()


def test_experts_in_one_row_fit_as_older_files_store_them() -> None:
    assert "blk.1.ffn_down_exps.weight" in validate({**FITTING, "blk.1.ffn_down_exps.weight": (1, 192)}).covered


def test_every_entry_of_another_size_is_named_with_both_sizes() -> None:
    error = refusal({**FITTING, "blk.0.attn_q.weight": (1, 64), "blk.1.ffn_down_exps.weight": (8, 48)})
    assert error.code is ErrorCode.IMATRIX_MISMATCH
    assert "blk.0.attn_q.weight has 64 values, expected 32" in error.message
    assert "blk.1.ffn_down_exps.weight has 384 values, expected 192" in error.message
    assert error.fields["tensors"] == ["blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight"]


def test_an_entry_of_the_embedding_may_have_any_size() -> None:
    assert "token_embd.weight" in validate({**FITTING, "token_embd.weight": (1, 7)}).covered


def test_entries_beyond_the_last_block_mean_a_deeper_model() -> None:
    error = refusal({**FITTING, "blk.2.attn_q.weight": (1, 32)})
    assert error.code is ErrorCode.IMATRIX_MISMATCH
    assert "blk.2.attn_q.weight" in error.message
    assert "last block 1" in error.message


def test_entries_of_an_extra_prediction_layer_are_tolerated() -> None:
    extra = {"blk.2.nextn.eh_proj.weight": (1, 64), "blk.2.attn_q.weight": (1, 32)}
    assert validate({**FITTING, **extra}).unknown == ("blk.2.attn_q.weight", "blk.2.nextn.eh_proj.weight")


def test_entries_of_single_experts_are_tolerated_in_a_block_that_exists() -> None:
    assert validate({**FITTING, "blk.0.ffn_down.3.weight": (1, 48)}).unknown == ("blk.0.ffn_down.3.weight",)


def test_a_matrix_without_a_common_name_is_of_another_model() -> None:
    error = refusal({"blk.0.attn_qkv.weight": (1, 32), "blk.1.ffn_up.weight": (1, 32)})
    assert error.code is ErrorCode.IMATRIX_MISMATCH
    assert "blk.0.attn_qkv.weight" in error.message


def test_a_tensor_that_must_have_an_entry_is_named_with_its_type() -> None:
    shapes = {name: shape for name, shape in FITTING.items() if name != "blk.1.attn_q.weight"}
    needs = [ImatrixNeed("blk.0.attn_q.weight", GGMLType.IQ2_XS), ImatrixNeed("blk.1.attn_q.weight", GGMLType.IQ2_XS)]
    assert validate(shapes).uncovered == ("token_embd.weight", "blk.1.attn_q.weight")
    error = refusal(shapes, needs)
    assert error.code is ErrorCode.IMATRIX_REQUIRED
    assert error.fields == {"file": "m.gguf", "tensor": "blk.1.attn_q.weight", "type": "IQ2_XS"}

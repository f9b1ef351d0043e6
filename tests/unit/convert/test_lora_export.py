"""LoRA files: what is in them, and what is refused because llama.cpp could not or would not apply it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import read_gguf, save_adapter, save_model
from worker.models.adapters import LoraPair, normalise_for_export, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.lora import export_lora
from worker.models.convert.metadata import ModelMetadata, Naming, describe
from worker.models.convert.pipeline import ConvertResult
from worker.models.gguf.reader import open_gguf


def pair(name: str, rows: int, columns: int, *, r: int = 2, transposed: bool = False) -> LoraPair:
    return LoraPair(name, torch.ones(r, columns), torch.ones(rows, r), r, 4.0, transposed)


def export(
    base: Path, pairs: list[LoraPair], path: Path, *, gguf_dtype: str = "f16", metadata: ModelMetadata | None = None
) -> ConvertResult:
    naming = Naming(metadata, "A")
    return export_lora(pairs, open_base_model(base), path, gguf_dtype=gguf_dtype, naming=naming)


def test_metadata_says_what_it_is_and_nothing_of_this_machine(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    result = export(run.base, run.pairs(), tmp_path / "lora.gguf")
    metadata = read_gguf(tmp_path / "lora.gguf")[0]
    assert metadata["general.type"] == "adapter"
    assert metadata["adapter.type"] == "lora"
    assert metadata["adapter.lora.alpha"] == 8.0
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.name"] == "A"
    assert metadata["general.base_model.0.name"] == "Base Model"
    assert result.tensor_types == {"F16": 28}
    raw = (tmp_path / "lora.gguf").read_bytes()
    assert str(run.base.parent).encode() not in raw
    assert b"tokenizer.ggml" not in raw


def test_metadata_composed_from_the_cards(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    metadata = describe(run.base, checkpoint_dir=run.adapter, adapter_base="owner/base-7B", name="Mine")
    export(run.base, run.pairs(), tmp_path / "lora.gguf", metadata=metadata)
    written = read_gguf(tmp_path / "lora.gguf")[0]
    assert written["general.base_model.0.repo_url"] == "https://huggingface.co/owner/base-7B"
    assert written["general.quantized_by"].startswith("trainpack")


@pytest.mark.parametrize(
    ("gguf_dtype", "types"),
    [
        ("f32", {"F32": 28}),
        ("f16", {"F16": 28}),
        ("bf16", {"BF16": 28}),
        # rows of B are as long as the rank, which 32 does not divide: F16, as upstream does
        ("q8_0", {"Q8_0": 14, "F16": 14}),
    ],
)
def test_types(gguf_dtype: str, types: dict[str, Any], run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    assert export(run.base, run.pairs(), tmp_path / "lora.gguf", gguf_dtype=gguf_dtype).tensor_types == types
    with open_gguf(tmp_path / "lora.gguf") as file:
        assert len(file.tensors) == 28


def test_embedding_is_looked_up_by_token(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """llama.cpp takes rows of A by token id, so A is (tokens, r) there and B (i, r)."""
    run = run_of("llama")
    a, b = torch.randn(2, 32), torch.randn(400, 2)
    export(
        run.base, [LoraPair("model.embed_tokens.weight", a, b, 2, 4.0, False)], tmp_path / "l.gguf", gguf_dtype="f32"
    )
    tensors = read_gguf(tmp_path / "l.gguf")[1]
    assert torch.equal(tensors["token_embd.weight.lora_a"], b)
    assert torch.equal(tensors["token_embd.weight.lora_b"], a.T)


def test_rank_stabilised_scaling_is_in_b(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """llama.cpp multiplies with alpha / r; this adapter wants alpha / sqrt(r)."""
    run = run_of("llama")
    adapter = save_adapter(run.base, tmp_path / "rs", use_rslora=True, target_modules=["o_proj"])
    opened = open_adapter(adapter)
    pairs = normalise_for_export(opened, run.open_base())
    export(run.base, pairs, tmp_path / "lora.gguf", gguf_dtype="f32")
    b = read_gguf(tmp_path / "lora.gguf")[1]["blk.0.attn_output.weight.lora_b"]
    stored = next(
        opened.read(key) for key in opened.tensors if key.module.endswith("0.self_attn.o_proj") and key.part == "lora_B"
    )
    assert torch.allclose(b, stored * 2)  # (8 / sqrt 4) / (8 / 4)


@pytest.mark.parametrize(
    ("architecture", "tensor", "rows", "columns"),
    [
        ("deepseek-v3", "model.layers.0.self_attn.q_a_proj.weight", 24, 32),
        ("deepseek-v3", "model.layers.0.self_attn.kv_b_proj.weight", 128, 16),
        ("deepseek-v2", "model.layers.0.self_attn.q_proj.weight", 96, 32),
        ("deepseek-v3", "lm_head.weight", 49152, 32),
    ],
)
def test_tensors_that_llama_cpp_would_silently_skip_are_refused(
    architecture: str, tensor: str, rows: int, columns: int, run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    with pytest.raises(PackagingError) as caught:
        export(run_of(architecture).base, [pair(tensor, rows, columns)], tmp_path / "lora.gguf")
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert caught.value.fields["tensor"] == tensor
    assert "llama.cpp applies no adapter" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_rest_of_such_a_model_can_be_exported(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    pairs = [
        pair("model.layers.0.mlp.down_proj.weight", 32, 64),
        pair("model.layers.1.self_attn.o_proj.weight", 32, 64),
    ]
    export(run_of("deepseek-v3").base, pairs, tmp_path / "lora.gguf")
    assert set(read_gguf(tmp_path / "lora.gguf")[1]) == {
        f"blk.{name}.weight.lora_{part}" for name in ("0.ffn_down", "1.attn_output") for part in "ab"
    }


def test_experts_of_a_layer_are_one_tensor(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """Experts and projections without an adapter are zeros in it, or not in the file at all."""
    base = run_of("mixtral").base
    pairs = [pair(f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight", 32, 64, r=n) for n in (1, 2)]
    export(base, pairs, tmp_path / "lora.gguf", gguf_dtype="f32")
    tensors = read_gguf(tmp_path / "lora.gguf")[1]
    assert set(tensors) == {"blk.0.ffn_down_exps.weight.lora_a", "blk.0.ffn_down_exps.weight.lora_b"}
    a, b = tensors["blk.0.ffn_down_exps.weight.lora_a"], tensors["blk.0.ffn_down_exps.weight.lora_b"]
    assert (a.shape, b.shape) == ((4, 2, 64), (4, 32, 2))
    strength = (b @ a).mean((1, 2)) / 2  # every pair is of ones: the product is its rank, the strength 1
    assert strength.tolist() == [0, 1, 1, 0]


def test_tensor_unknown_to_the_converter_is_named(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    with pytest.raises(PackagingError) as caught:
        export(run_of("llama").base, [pair("model.layers.0.strange.weight", 8, 8)], tmp_path / "lora.gguf")
    assert "model.layers.0.strange.weight" in caught.value.message


def test_vision_tower_has_no_place_in_a_text_models_file(tmp_path: Path) -> None:
    base = save_model("gemma3", tmp_path / "base")
    with pytest.raises(PackagingError) as caught:
        export(base, [pair("vision_tower.encoder.layers.0.mlp.fc1.weight", 8, 8)], tmp_path / "lora.gguf")
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert "adapters to text models only" in caught.value.message

"""Tied embeddings: what the trained model computes is what the merged model computes.

Where PEFT's merge agrees with the trained model, the tensors equal PEFT's. Where it does not (LoRA on one half of a
tied pair is added to the tensor that both share), the merged model is held against the model with the adapter attached.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from tests.unit.adapters.peft_reference import (
    changed,
    differences,
    logits_of,
    overlay_merge,
    peft_logits,
    peft_merge,
    read_all,
    save_adapter,
)
from tests.unit.adapters.tiny_models import tiny_config
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TOKENS = torch.arange(20).reshape(2, 10)


def _build(base: Path, adapter: Path, out: Path) -> tuple[Any, Overlay]:
    summary = build_overlay(open_adapter(adapter), open_base_model(base), out, precision="base")
    return summary, Overlay.load(out)


@pytest.mark.parametrize(
    ("settings", "untied"),
    [
        ({"modules_to_save": ["lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"trainable_token_indices": [3, 7]}, False),
    ],
)
def test_trained_half_equals_peft(
    settings: dict[str, Any], untied: bool, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("llama-tied", "bfloat16")
    adapter = save_adapter(base, LoraConfig(r=4, target_modules=["q_proj"], **settings), tmp_path / "adapter")

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")
    overlay = Overlay.load(tmp_path / "overlay.safetensors")

    assert differences(expected, actual) == []
    assert (_HEAD in actual) == untied
    assert overlay.added() == ({_HEAD: _EMBEDDING} if untied else {})
    assert overlay.config_changes() == ({"tie_word_embeddings": False} if untied else {})


@pytest.mark.parametrize(
    ("targets", "moved"),
    [
        (["embed_tokens"], {_EMBEDDING}),
        (["lm_head"], {_HEAD}),
        (["embed_tokens", "lm_head"], {_EMBEDDING, _HEAD}),
    ],
)
def test_lora_on_a_tied_half_does_not_reach_the_other(
    targets: list[str], moved: set[Any], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base("llama-tied", "float32")
    adapter = save_adapter(base, LoraConfig(r=4, target_modules=["q_proj", *targets]), tmp_path / "adapter")

    merged = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")
    summary, overlay = _build(base, adapter, tmp_path / "overlay.safetensors")

    original = read_all(base)[_EMBEDDING]
    assert {name for name in (_EMBEDDING, _HEAD) if not torch.equal(merged[name], original)} == moved
    assert overlay.config_changes() == {"tie_word_embeddings": False}
    assert any("untied" in note for note in summary.notes)
    config = tiny_config("llama")
    torch.testing.assert_close(
        logits_of(config, merged, _TOKENS), peft_logits(base, adapter, _TOKENS), rtol=1e-4, atol=1e-4
    )


def test_one_adapter_for_both_halves_is_added_once(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base("llama-tied", "float32")
    config = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True)
    adapter = save_adapter(base, config, tmp_path / "adapter")

    merged = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert _HEAD not in merged
    assert _EMBEDDING in changed(base, merged)
    torch.testing.assert_close(
        logits_of(tiny_config("llama-tied"), merged, _TOKENS),
        peft_logits(base, adapter, _TOKENS),
        rtol=1e-4,
        atol=1e-4,
    )


def _with_vocabulary(
    adapter: Path, rows: int, *, names: tuple[str, ...] = ("embed_tokens", "lm_head"), equal: bool = False
) -> dict[str, torch.Tensor]:
    """The adapter as saved after resize_token_embeddings: whole embeddings beside its LoRA tensors."""
    weights = adapter / "adapter_model.safetensors"
    tensors: dict[str, torch.Tensor] = load_file(weights)
    torch.manual_seed(5)
    embedding = torch.randn(rows, 32)
    for name in names:
        key = "base_model.model.lm_head.weight" if name == "lm_head" else f"base_model.model.model.{name}.weight"
        tensors[key] = embedding.clone() if equal else torch.randn(rows, 32)
    save_file(tensors, weights)
    return tensors


@pytest.mark.parametrize("rows", [80, 96, 100])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_resized_vocabulary_of_the_adapter_wins(
    architecture: str, rows: int, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base(architecture, "float32")
    adapter = save_adapter(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    saved = _with_vocabulary(adapter, rows)

    merged = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")
    overlay = Overlay.load(tmp_path / "overlay.safetensors")

    assert torch.equal(merged[_EMBEDDING], saved["base_model.model.model.embed_tokens.weight"])
    assert torch.equal(merged[_HEAD], saved["base_model.model.lm_head.weight"])
    changes = overlay.config_changes()
    assert changes.get("vocab_size") == (None if rows == 96 else rows)
    assert changes.get("tie_word_embeddings") == (False if architecture == "llama-tied" else None)
    probe = torch.empty(96, 32, device="meta")
    assert overlay.apply(_EMBEDDING, probe).shape == (rows, 32)


def test_equal_halves_saved_by_a_tied_model_stay_tied(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base("llama-tied", "float32")
    adapter = save_adapter(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    _with_vocabulary(adapter, 100, equal=True)

    merged = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert _HEAD not in merged
    assert merged[_EMBEDDING].shape == (100, 32)
    assert Overlay.load(tmp_path / "overlay.safetensors").config_changes() == {"vocab_size": 100}


def test_lora_on_the_saved_base_layer_of_a_resized_embedding(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT saves `embed_tokens.base_layer.weight` beside the LoRA of a targeted, resized embedding."""
    base = tiny_base("llama", "float32")
    adapter = save_adapter(base, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]), tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    path = "base_model.model.model.embed_tokens"
    saved, a, b = torch.randn(100, 32), torch.randn(2, 100), torch.randn(32, 2)
    extra = {f"{path}.base_layer.weight": saved, f"{path}.lora_embedding_A": a, f"{path}.lora_embedding_B": b}
    head = {"base_model.model.lm_head.weight": torch.randn(100, 32)}
    save_file({**load_file(weights), **extra, **head}, weights)

    merged = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert torch.equal(merged[_EMBEDDING], saved + (b @ a).T)


def test_lora_on_a_padded_embedding_keeps_the_rows_it_knows(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base("llama", "float32")
    adapter = save_adapter(base, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]), tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    path = "base_model.model.model.embed_tokens"
    a, b = torch.randn(2, 90), torch.randn(32, 2)
    head_b, head_a = torch.randn(90, 2), torch.randn(2, 32)
    head = {"base_model.model.lm_head.lora_A.weight": head_a, "base_model.model.lm_head.lora_B.weight": head_b}
    save_file({**load_file(weights), f"{path}.lora_embedding_A": a, f"{path}.lora_embedding_B": b, **head}, weights)
    before = read_all(base)

    merged = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert torch.equal(merged[_EMBEDDING], before[_EMBEDDING][:90] + (b @ a).T)
    assert torch.equal(merged[_HEAD], before[_HEAD][:90] + head_b @ head_a)
    assert Overlay.load(tmp_path / "overlay.safetensors").config_changes() == {"vocab_size": 90}


def _base_with_both_halves_stored(tied: Path, directory: Path) -> Path:
    """As some published models are: the config says tied, the files hold both tensors, equal."""
    tensors = read_all(tied)
    tensors[_HEAD] = tensors[_EMBEDDING].clone()
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_bytes((tied / "config.json").read_bytes())
    return directory


@pytest.mark.parametrize(
    ("settings", "untied"),
    [
        ({"modules_to_save": ["lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"trainable_token_indices": [3, 7]}, False),
    ],
)
def test_head_that_the_files_hold_twice(
    settings: dict[str, Any], untied: bool, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    tied = tiny_base("llama-tied", "bfloat16")
    adapter = save_adapter(tied, LoraConfig(r=4, target_modules=["q_proj"], **settings), tmp_path / "adapter")
    base = _base_with_both_halves_stored(tied, tmp_path / "both")

    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    overlay = Overlay.load(tmp_path / "overlay.safetensors")
    if not untied:
        expected[_HEAD] = expected[_EMBEDDING]  # transformers writes a tied head once
    assert differences(expected, actual) == []
    assert overlay.added() == {}
    assert overlay.config_changes() == ({"tie_word_embeddings": False} if untied else {})


def test_lora_on_a_head_that_the_files_hold_twice(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    tied = tiny_base("llama-tied", "float32")
    adapter = save_adapter(tied, LoraConfig(r=4, target_modules=["lm_head"]), tmp_path / "adapter")
    base = _base_with_both_halves_stored(tied, tmp_path / "both")

    merged = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")

    assert changed(base, merged) == {_HEAD}
    assert Overlay.load(tmp_path / "overlay.safetensors").config_changes() == {"tie_word_embeddings": False}


def test_halves_of_different_sizes_are_left_alone(tmp_path: Path) -> None:
    """An embedding with rows for picture tokens, which the head does not answer with (Mllama)."""
    base = {
        f"{Q}.weight": torch.zeros(2, 2),
        "model.embed_tokens.weight": torch.ones(7, 2),
        "lm_head.weight": torch.ones(5, 2),
    }
    merged = overlay_merge(
        write_base(tmp_path / "base", base),
        write_adapter(tmp_path / "adapter", pair(Q, [[1, 1]], [[1], [1]])),
        tmp_path / "overlay.safetensors",
    )

    assert changed(tmp_path / "base", merged) == {f"{Q}.weight"}

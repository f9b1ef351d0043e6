"""Rotary embeddings stretched for long texts reach the file from the Hub's configs and from those of transformers 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.field.vocabularies import FAMILIES
from tests.unit.convert.convert_samples import read_gguf
from worker.models.convert.pipeline import convert

HALF = 6  # rotary dimensions / 2: head_dim 16 x 0.75
FACTORS = {"short_factor": [1.0 + at / 10 for at in range(HALF)], "long_factor": [2.0 + at for at in range(HALF)]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def _saved(directory: Path, model_type: str, older: bool, **settings: Any) -> Path:
    """A small model of random weights; its config says the rotary embedding in the older form, or the newer."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    directory.mkdir(parents=True)
    tokens = FAMILIES["llama" if model_type == "phi3" else "gpt2"](directory)
    torch.manual_seed(3)
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": tokens, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = CONFIG_MAPPING[model_type](**sizes, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    if older:
        path = directory / "config.json"
        said = json.loads(path.read_text())
        rope = said.pop("rope_parameters")
        said |= {"rope_theta": rope.pop("rope_theta")}
        if "partial_rotary_factor" in rope:
            said["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        path.write_text(json.dumps(said | {"rope_scaling": rope}))
    return directory


@pytest.mark.parametrize("older", [True, False], ids=["rope_scaling", "rope_parameters"])
def test_factors_of_longrope_reach_the_file_from_either_form(older: bool, tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 128, **FACTORS,
    }  # fmt: skip
    model = _saved(
        tmp_path / "model", "phi3", older, max_position_embeddings=512, original_max_position_embeddings=128,
        sliding_window=None, rope_parameters=rope,
    )  # fmt: skip
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    metadata, tensors = read_gguf(tmp_path / "out.gguf")
    for length in ("short", "long"):
        assert np.allclose(np.asarray(tensors[f"rope_factors_{length}.weight"]).ravel(), FACTORS[f"{length}_factor"])
    assert metadata["phi3.rope.scaling.attn_factor"] == pytest.approx(np.sqrt(1 + np.log(4) / np.log(128)))


@pytest.mark.parametrize("older", [True, False], ids=["rope_scaling", "rope_parameters"])
def test_yarn_reaches_the_file_from_either_form(older: bool, tmp_path: Path) -> None:
    rope = {"rope_theta": 10000.0, **YARN}
    model = _saved(tmp_path / "model", "qwen3", older, head_dim=16, max_position_embeddings=512, rope_parameters=rope)
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    metadata, _ = read_gguf(tmp_path / "out.gguf")
    assert metadata["qwen3.rope.scaling.type"] == "yarn"
    assert metadata["qwen3.rope.scaling.factor"] == 4.0
    assert metadata["qwen3.rope.scaling.original_context_length"] == 128

from __future__ import annotations

import pytest

from worker.models.adapters.keys import AdapterKey, parse_key

_Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (f"base_model.model.{_Q}.lora_A.weight", AdapterKey(_Q, "lora_A")),
        (f"base_model.model.{_Q}.lora_B.default.weight", AdapterKey(_Q, "lora_B", adapter_name="default")),
        (f"base_model.model.{_Q}.lora_B.bias", AdapterKey(_Q, "lora_B.bias")),
        (f"module.base_model.model.{_Q}.lora_A.weight", AdapterKey(_Q, "lora_A")),
        (f"base_model.model._orig_mod.{_Q}.lora_A.weight", AdapterKey(_Q, "lora_A")),
        (f"_fsdp_wrapped_module.base_model.model.module.{_Q}.lora_A.weight", AdapterKey(_Q, "lora_A")),
        (f"{_Q}.lora_A.weight", AdapterKey(_Q, "lora_A")),
        ("base_model.model.model.embed_tokens.lora_embedding_A", AdapterKey("model.embed_tokens", "lora_embedding_A")),
        (
            "base_model.model.model.embed_tokens.lora_embedding_B.tuned",
            AdapterKey("model.embed_tokens", "lora_embedding_B", adapter_name="tuned"),
        ),
        (f"base_model.model.{_Q}.lora_magnitude_vector", AdapterKey(_Q, "lora_magnitude_vector")),
        (f"base_model.model.{_Q}.lora_magnitude_vector.weight", AdapterKey(_Q, "lora_magnitude_vector")),
        (
            "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight",
            AdapterKey("model.layers.0.mlp.experts", "lora_A", depth=1),
        ),
        ("base_model.model.lm_head.weight", AdapterKey("lm_head", ".weight")),
        ("base_model.model.lm_head.base_layer.weight", AdapterKey("lm_head", ".weight", depth=1)),
        ("base_model.model.lm_head.modules_to_save.weight", AdapterKey("lm_head", ".weight")),
        (
            "base_model.model.lm_head.modules_to_save.default.weight",
            AdapterKey("lm_head", ".weight", adapter_name="default"),
        ),
        (
            "base_model.model.score.modules_to_save.default.dense.weight",
            AdapterKey("score.dense", ".weight", adapter_name="default"),
        ),
        (
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            AdapterKey("model.embed_tokens", "trainable_tokens_delta"),
        ),
        (f"base_model.model.{_Q}.base_layer.bias", AdapterKey(_Q, ".bias", depth=1)),
        ("weight", AdapterKey("", ".weight")),
    ],
)
def test_names_are_taken_apart(name: str, key: AdapterKey) -> None:
    assert parse_key(name) == key

"""The order of layers reaches llama.cpp, by the file or by its own assumption; what it cannot have is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from api_client.contract.errors import ErrorCode, PackagingError
from tests.field.hidden import LENGTH, angle, by_llama_cpp, by_transformers
from tests.field.vocabularies import BPE_TOKENS, SPM_TOKENS, gpt2, llama
from worker.models.convert.layer_kinds import check_assumptions, full_attention_interval, lost_window, missing_pattern
from worker.models.convert.pipeline import convert

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
_SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "sliding_window": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
IDS = [5 + 7 * at % 300 for at in range(LENGTH)]
SAME = 1e-4


def _model(directory: Path, model_type: str, kinds: list[str], tokens: int, **more: Any) -> Any:
    torch.manual_seed(5)
    settings = {**_SMALL, "num_hidden_layers": len(kinds), "layer_types": kinds, "vocab_size": tokens, **more}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings)).to(torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else None
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("kinds", [[SLIDING, FULL, SLIDING, FULL], [FULL, SLIDING, SLIDING], [SLIDING] * 5 + [FULL]])
def test_llama_cpp_computes_a_gemma_of_any_order_of_layers_as_transformers_does(
    tmp_path: Path, kinds: list[str]
) -> None:
    model = _model(tmp_path / "base", "gemma3_text", kinds, SPM_TOKENS, query_pre_attn_scalar=16)
    llama(tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "base.gguf", gguf_dtype="f32")
    assert angle(by_llama_cpp(tmp_path / "base.gguf", IDS), by_transformers(model, IDS)) < SAME


def test_llama_cpp_computes_a_hybrid_qwen_of_another_interval_as_transformers_does(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
    kinds = [LINEAR, FULL, LINEAR, FULL]
    model = _model(
        tmp_path / "base", "qwen3_5_text", kinds, BPE_TOKENS, head_dim=32, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
        rope_parameters={**rope, "mrope_interleaved": True},
    )  # fmt: skip
    gpt2(tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "base.gguf", gguf_dtype="f32")
    assert angle(by_llama_cpp(tmp_path / "base.gguf", IDS), by_transformers(model, IDS)) < SAME


WINDOW = {"gemma3.attention.sliding_window": 8}


@pytest.mark.parametrize(
    ("architecture", "kinds", "metadata", "flags"),
    [
        ("gemma3", [SLIDING] * 5 + [FULL], WINDOW, None),
        ("gemma3", [SLIDING, FULL], WINDOW, [True, False]),
        ("gemma3", [SLIDING, FULL], {}, None),
        ("gemma3", [SLIDING, FULL], {**WINDOW, "gemma3.attention.sliding_window_pattern": [True, False]}, None),
        ("modern-bert", [FULL, SLIDING, SLIDING, FULL], {"modern-bert.attention.sliding_window": 8}, None),
        ("llama", [SLIDING, FULL], {"llama.attention.sliding_window": 8}, None),
    ],
    ids=["as assumed", "another order", "no window", "said already", "first of each group", "nothing assumed"],
)
def test_the_order_is_said_where_llama_cpp_would_assume_another(
    architecture: str, kinds: list[str], metadata: dict[str, Any], flags: list[bool] | None
) -> None:
    assert missing_pattern(architecture, {"layer_types": kinds}, metadata) == flags


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ([LINEAR, LINEAR, LINEAR, FULL], {"full_attention_interval": 4}),
        ([LINEAR, FULL, LINEAR, FULL], {"full_attention_interval": 2}),
        ([LINEAR, FULL, LINEAR], {"full_attention_interval": 2}),
        ([LINEAR, LINEAR], {}),
    ],
)
def test_the_interval_of_full_attention_follows_from_the_kinds(kinds: list[str], found: dict[str, Any]) -> None:
    assert full_attention_interval({"layer_types": kinds}) == found


@pytest.mark.parametrize("kinds", [[FULL, LINEAR, FULL], [LINEAR, FULL, FULL], [LINEAR, FULL, LINEAR, LINEAR]])
def test_an_order_that_no_interval_makes_is_refused_naming_it(kinds: list[str]) -> None:
    with pytest.raises(PackagingError) as caught:
        full_attention_interval({"layer_types": kinds})
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert "layer_types" in caught.value.message


def _ropes(whole: float, window: float) -> dict[str, Any]:
    return {"rope_parameters": {"full_attention": {"rope_theta": whole}, "sliding_attention": {"rope_theta": window}}}


_EXAONE = {"sliding_window": 8, "num_hidden_layers": 30}


@pytest.mark.parametrize(
    ("architecture", "right", "wrong", "key"),
    [
        ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, {"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers"),
        ("afmoe", {"mup_enabled": True}, {"mup_enabled": False}, "mup_enabled"),
        ("gemma-embedding", {}, {"use_bidirectional_attention": False}, "use_bidirectional_attention"),
        ("exaone4", {"sliding_window": None, "num_hidden_layers": 30}, _EXAONE, "sliding_window"),
        ("exaone4", {"sliding_window": 8, "num_hidden_layers": 64}, _EXAONE, "sliding_window"),
        ("exaone4", {}, {"sliding_window": None, "num_hidden_layers": 64}, "sliding_window"),
        ("qwen3moe", {"norm_topk_prob": True}, {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("olmoe", {"norm_topk_prob": False}, {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("mellum", _ropes(5e5, 5e5), _ropes(5e5, 1e4), "rope_theta 500000 for full_attention, 10000 for sliding_att"),
    ],
)  # fmt: skip
def test_what_llama_cpp_has_built_in_otherwise_is_refused_by_its_key(
    architecture: str, right: dict[str, Any], wrong: dict[str, Any], key: str
) -> None:
    check_assumptions(architecture, right)
    with pytest.raises(PackagingError, match=key) as caught:
        check_assumptions(architecture, wrong)
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE


_MISTRAL = {"model_type": "mistral", "sliding_window": 16, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        (_MISTRAL, True),
        ({**_MISTRAL, "sliding_window": None}, False),
        ({**_MISTRAL, "max_position_embeddings": 16}, False),
        ({**_MISTRAL, "layer_types": [SLIDING, FULL]}, True),
        ({**_MISTRAL, "layer_types": [FULL, FULL]}, False),
        ({**_MISTRAL, "model_type": "qwen2"}, False),
        ({**_MISTRAL, "model_type": "qwen2", "use_sliding_window": True}, True),
        ({**_MISTRAL, "model_type": "qwen2", "use_sliding_window": False}, False),
    ],
)
def test_a_window_that_the_file_has_no_place_for_is_told(config: dict[str, Any], lost: bool) -> None:
    told = lost_window("llama", config, {})
    assert (told is not None) is lost
    assert told is None or "16 tokens back" in told
    assert lost_window("llama", config, {"llama.attention.sliding_window": 16}) is None

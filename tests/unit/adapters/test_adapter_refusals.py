"""Adapters that are refused: each with its code, naming the file, the tensor and the fact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from worker.models.adapters import build_overlay, open_adapter
from worker.models.adapters.module_tree import read_module_tree
from worker.models.checkpoint import open_base_model

_FACTORS = pair(Q, [[1, 1]], [[1], [1]])
_BASE = {
    f"{Q}.weight": torch.zeros(2, 2),
    "model.embed_tokens.weight": torch.zeros(5, 2),
    "lm_head.weight": torch.zeros(5, 2),
    "model.norm.weight": torch.zeros(2),
}


def _refusal(
    tmp_path: Path, tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor] | None = None, **config: Any
) -> PackagingError:
    out = tmp_path / "overlay.safetensors"
    model = open_base_model(write_base(tmp_path / "base", base or _BASE))
    with pytest.raises(PackagingError) as caught:
        build_overlay(
            open_adapter(write_adapter(tmp_path / "adapter", tensors, **config)), model, out, precision="base"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    return caught.value


def test_adapter_of_a_wider_model(tmp_path: Path) -> None:
    error = _refusal(tmp_path, pair(Q, [[1, 1, 1, 1]], [[1], [1]]))

    assert error.code is ErrorCode.ADAPTER_MISMATCH
    assert f"{Q}.lora_B.weight" in error.message
    assert "[2, 4]" in error.message
    assert "[2, 2]" in error.message
    assert error.fields["base_tensor"] == f"{Q}.weight"


def test_adapter_without_a_single_match(tmp_path: Path) -> None:
    error = _refusal(
        tmp_path, pair("encoder.block.0.attention", [[1, 1]], [[1], [1]]), base_model_name_or_path="/x/other"
    )

    assert error.code is ErrorCode.ADAPTER_MISMATCH
    assert "2 of 2 tensors" in error.message
    assert "'other'" in error.message
    assert "/x/" not in error.message


@pytest.mark.parametrize("config", [{"num_hidden_layers": 10**9}, {"text_config": {"num_experts": 10**9}}])
def test_a_config_that_asks_for_absurdly_many_modules_builds_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    model = open_base_model(write_base(tmp_path / "base", _BASE, **config))

    assert read_module_tree(model) is None


@pytest.mark.parametrize("name", [f"{Q}.lora_A.weight", "lm_head.weight"])
def test_tensors_that_a_sharding_trainer_did_not_gather(name: str, tmp_path: Path) -> None:
    error = _refusal(tmp_path, {**_FACTORS, name: torch.zeros(0)})

    assert error.code is ErrorCode.ADAPTER_INVALID
    assert name in error.message
    assert "gather" in error.remedy


def test_adapter_of_which_a_part_matches(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {**_FACTORS, **pair(Q.replace("layers.0", "layers.7"), [[1, 1]], [[1], [1]])})

    assert error.code is ErrorCode.ADAPTER_MISMATCH
    assert error.fields["unmatched_count"] == 2
    assert "layers.7" in error.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [f"{Q}.lora_B.weight", "lm_head.weight", f"{Q}.lora_magnitude_vector.weight"])
def test_values_that_are_not_finite(name: str, value: float, tmp_path: Path) -> None:
    shapes = {"lm_head.weight": (5, 2), f"{Q}.lora_magnitude_vector.weight": (2,)}
    bad = torch.zeros(shapes.get(name, (2, 1)))
    bad.view(-1)[-1] = value
    error = _refusal(tmp_path, {**_FACTORS, name: bad})

    assert error.code is ErrorCode.ADAPTER_NOT_FINITE
    assert error.fields["tensor"] == f"base_model.model.{name}"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("arrow_config", {"top_k": 2}),
        ("alora_invocation_tokens", [5, 6]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("kasa_config", {"beta": 1.0}),
        ("monteclora_config", {"num_samples": 2}),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("use_something_new", True),
    ],
)
def test_settings_that_cannot_be_merged_are_named(setting: str, value: Any, tmp_path: Path) -> None:
    error = _refusal(tmp_path, _FACTORS, **{setting: value})

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert error.fields == {"feature": setting}
    assert setting in error.message
    assert error.remedy


@pytest.mark.parametrize(
    "name",
    [
        f"{Q}.lora_A.bias",
        f"{Q}.lora_embedding_B.bias",
        "lm_head.lora_magnitude_vector.weight",
        "lm_head.lora_B.bias",
    ],
)
def test_a_tensor_that_no_layer_has_is_not_left_out_without_a_word(name: str, tmp_path: Path) -> None:
    error = _refusal(tmp_path, {**_FACTORS, name: torch.ones(2)})

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert error.fields["tensor"] == f"base_model.model.{name}"
    assert error.remedy


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "pissa_niter_4", "PiSSA_niter_16"])
def test_initialisations_that_altered_the_base(init: str, tmp_path: Path) -> None:
    error = _refusal(tmp_path, _FACTORS, init_lora_weights=init)

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert init in error.message
    assert "path_initial_model_for_weight_conversion" in error.remedy


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING", "XLORA", "POLY", "BOFT", "NOT_YET_KNOWN"])
def test_methods_without_merged_weights(method: str, tmp_path: Path) -> None:
    error = _refusal(tmp_path, {"prompt_embeddings": torch.zeros(3, 2)}, peft_type=method)

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert error.fields == {"feature": method}


def test_lora_on_a_convolution(tmp_path: Path) -> None:
    factors = {f"{Q}.lora_A.weight": torch.zeros(1, 2, 3), f"{Q}.lora_B.weight": torch.zeros(2, 1, 1)}
    error = _refusal(tmp_path, factors)

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert error.fields["module"] == Q


def test_lora_bias_without_a_bias_in_the_base(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {**_FACTORS, f"{Q}.lora_B.bias": torch.zeros(2)}, lora_bias=True)

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert error.fields["feature"] == "lora_bias"


@pytest.mark.parametrize(
    ("tensors", "fact"),
    [
        ({f"{Q}.lora_A.weight": torch.zeros(1, 2)}, "without its partner"),
        ({f"{Q}.lora_B.weight": torch.zeros(2, 1)}, "without its partner"),
    ],
)
def test_half_of_a_pair(tensors: dict[str, Any], fact: str, tmp_path: Path) -> None:
    error = _refusal(tmp_path, tensors)

    assert error.code is ErrorCode.ADAPTER_INVALID
    assert fact in error.message


def test_dora_without_magnitudes(tmp_path: Path) -> None:
    error = _refusal(tmp_path, _FACTORS, use_dora=True)

    assert error.code is ErrorCode.ADAPTER_INVALID
    assert "magnitude" in error.message


def test_token_outside_the_embedding(tmp_path: Path) -> None:
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(2, 2)}
    error = _refusal(tmp_path, {**_FACTORS, **rows}, trainable_token_indices=[1, 5])

    assert error.code is ErrorCode.ADAPTER_MISMATCH
    assert error.fields == {"token": 5, "rows": 5}


def test_vocabulary_of_which_only_one_half_grew(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {**_FACTORS, "model.embed_tokens.weight": torch.zeros(7, 2)})

    assert error.code is ErrorCode.ADAPTER_MISMATCH
    assert error.fields == {"rows": 7, "tensor": "lm_head.weight", "tensor_rows": 5}


def test_norm_of_another_width(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {**_FACTORS, "model.norm.weight": torch.zeros(3)})

    assert error.code is ErrorCode.ADAPTER_MISMATCH
    assert "[3]" in error.message


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora_alpha", "sixteen"),
        ("lora_alpha", True),
        ("alpha_pattern", [1]),
        ("alpha_pattern", {"(": 1}),
        ("alpha_pattern", {"q_proj": "big"}),
        ("trainable_token_indices", [-1]),
        ("trainable_token_indices", {"embed_tokens": 3}),
        ("target_parameters", "gate_up_proj"),
    ],
)
def test_settings_of_the_wrong_kind(setting: str, value: Any, tmp_path: Path) -> None:
    error = _refusal(tmp_path, _FACTORS, **{setting: value})

    assert error.code is ErrorCode.ADAPTER_INVALID
    assert setting in error.message


def test_several_adapters_in_one_file(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_A.one.weight": torch.zeros(1, 2), f"{Q}.lora_A.two.weight": torch.zeros(1, 2)}
    error = _refusal(tmp_path, tensors)

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert error.fields["adapters"] == ["one", "two"]


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {**_FACTORS, f"module.{Q}.lora_A.weight": torch.zeros(1, 2)})

    assert error.code is ErrorCode.ADAPTER_INVALID
    assert "same tensor" in error.message


def test_dtype_that_adapters_do_not_have(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {f"{Q}.lora_A.weight": torch.zeros(1, 2, dtype=torch.uint8)})

    assert error.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert error.fields["feature"] == "U8"


def test_targeted_parameters_of_a_model_that_transformers_does_not_know(tmp_path: Path) -> None:
    """Two parameters of one module: which wrapper is whose is known only from the model's class."""
    base = {f"model.layers.0.experts.{name}": torch.zeros(2, 2, 2) for name in ("down", "up")}
    factors = pair("model.layers.0.experts", [[1, 1], [1, 1]], [[1, 1], [1, 1]])
    write_base(tmp_path / "base", base, model_type="unheard_of")
    model = open_base_model(tmp_path / "base")
    adapter = open_adapter(
        write_adapter(tmp_path / "adapter", factors, target_parameters=["experts.down", "experts.up"])
    )

    with pytest.raises(PackagingError) as caught:
        build_overlay(adapter, model, tmp_path / "overlay", precision="base")

    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert caught.value.fields["feature"] == "target_parameters"


def test_base_tensor_in_eight_bits(tmp_path: Path) -> None:
    base = {**_BASE, f"{Q}.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}
    error = _refusal(tmp_path, _FACTORS, base)

    assert error.code is ErrorCode.BASE_MODEL_QUANTIZED
    assert error.fields == {"tensor": f"{Q}.weight", "dtype": "F8_E4M3"}


def test_quantized_base(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "fp8"}}
    model = open_base_model(write_base(tmp_path / "base", _BASE, **config), as_stored=True)
    adapter = open_adapter(write_adapter(tmp_path / "adapter", _FACTORS))

    with pytest.raises(PackagingError) as caught:
        build_overlay(adapter, model, tmp_path / "overlay", precision="base")

    assert caught.value.code is ErrorCode.BASE_MODEL_QUANTIZED


def test_peft_cannot_use_a_tensor_of_the_file(tmp_path: Path) -> None:
    tensors = {f"{Q}.hada_w1_a": torch.zeros(2, 1), f"{Q}.surprise": torch.zeros(2)}
    error = _refusal(tmp_path, tensors, peft_type="LOHA")

    assert error.code in (ErrorCode.ADAPTER_INVALID, ErrorCode.ADAPTER_UNSUPPORTED)
    assert Q in error.message


def test_config_that_is_no_json(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", _FACTORS)
    (directory / "adapter_config.json").write_text("{")

    with pytest.raises(PackagingError) as caught:
        open_adapter(directory)
    assert caught.value.code is ErrorCode.ADAPTER_INVALID


def test_config_with_absurd_nesting(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", _FACTORS)
    (directory / "adapter_config.json").write_text(json.dumps({"r": 1})[:-1] + ', "x": ' + "[" * 100_000)

    with pytest.raises(PackagingError) as caught:
        open_adapter(directory)
    assert caught.value.code is ErrorCode.ADAPTER_INVALID


_STACKED = {**_BASE, "model.layers.0.mlp.experts.down_proj": torch.zeros(2, 2, 3)}
_REWARD = {"score.weight": torch.ones(1, 2)}
_TALL = "model.layers.40.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "base", "config", "fact", "remedy"),
    [
        (_REWARD, _BASE, {"task_type": "SEQ_CLS"}, "a trained head, 'score' (task_type SEQ_CLS)", "with PEFT"),
        ({"classifier.modules_to_save.weight": torch.ones(3, 2)}, _BASE, {}, "a trained head, 'classifier'", "PEFT"),
        (pair(f"actor.{Q}", [[1, 1]], [[1], [1]]), _BASE, {}, "without the leading 'actor'", "Take 'actor.' off"),
        (pair(f"a.b.{Q}", [[1, 1]], [[1], [1]]), _BASE, {}, "without the leading 'a.b'", "Take 'a.b.' off"),
        (
            {"model.layers.0.mlp.experts.lora_down_A": torch.ones(2, 3, 1)},
            _BASE,
            {},
            "NeMo AutoModel's own names",
            "in PEFT's form",
        ),
        (pair("model.layers.0.mlp.experts.7.w9", [[1, 1]], [[1], [1]]), _BASE, {}, "no experts", "mixture-of-experts"),
        (
            pair("model.layers.0.mlp.experts.7.w9", [[1, 1]], [[1], [1]]),
            _STACKED,
            {},
            "stores its experts as model.layers.0.mlp.experts.down_proj",
            "with the trainer that wrote it",
        ),
        (pair(_TALL, [[1, 1]], [[1], [1]]), _BASE, {}, "layers up to 0, the adapter up to 40", "trained on"),
        (pair("encoder.attention", [[1, 1]], [[1], [1]]), _BASE, {}, "does not know", "trained on"),
    ],
)
def test_the_remedy_of_a_mismatch_follows_from_its_cause(
    tensors: dict[str, torch.Tensor],
    base: dict[str, torch.Tensor],
    config: dict[str, Any],
    fact: str,
    remedy: str,
    tmp_path: Path,
) -> None:
    if "does not know" in fact:
        config = {**config, "base_model_name_or_path": "/x/other"}
    model = write_base(tmp_path / "base", base, **({"model_type": "fancy"} if "does not know" in fact else {}))
    adapter = open_adapter(write_adapter(tmp_path / "adapter", {**_FACTORS, **tensors}, **config))
    with pytest.raises(PackagingError) as caught:
        build_overlay(adapter, open_base_model(model), tmp_path / "overlay", precision="base")
    assert caught.value.code is ErrorCode.ADAPTER_MISMATCH
    assert fact in caught.value.message
    assert remedy in caught.value.remedy


def test_an_adapter_attached_to_a_part_of_the_model(tmp_path: Path) -> None:
    """`thinker.base_model.model.`: PEFT's own components stand inside the path."""
    tensors = {f"thinker.base_model.model.{name}": value for name, value in _FACTORS.items()}
    for directory, prefix in (("text", ""), ("whole", "thinker.")):
        base = write_base(tmp_path / f"base-{directory}", {prefix + name: value for name, value in _BASE.items()})
        adapter = write_adapter(tmp_path / f"adapter-{directory}", {})
        save_file(tensors, adapter / "adapter_model.safetensors")
        summary = build_overlay(open_adapter(adapter), open_base_model(base), tmp_path / directory, precision="base")
        assert (summary.touched, summary.steps) == (1, {"lora": 1})

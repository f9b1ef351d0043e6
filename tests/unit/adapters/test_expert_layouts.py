"""Adapters of fused experts are read as who wrote them meant them; each fixture is square, so that no shape tells.

The fixtures were made and merged by three releases of PEFT: ``data/make_expert_layouts.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.peft_reference import changed, differences, overlay_merge, peft_merge, save_adapter
from worker.models.adapters import normalise_for_export, open_adapter
from worker.models.checkpoint import open_base_model

_MADE = Path(__file__).parent / "data" / "expert_layouts"
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
RELEASES = ["0.18.1", "0.19.0", "0.19.1"]
GROUPED: dict[str, Any] = {"lora_B_layout": "grouped_by_expert"}


def rewritten(adapter: Path, out: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """A copy of an adapter with other settings."""
    shutil.copytree(adapter, out)
    config = json.loads((out / "adapter_config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if key not in drop}
    (out / "adapter_config.json").write_text(json.dumps(kept))
    return out


def made_merge(model: str, release: str) -> dict[str, torch.Tensor]:
    return dict[str, torch.Tensor](load_file(_MADE / f"{model}-{release}.merged.safetensors"))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("model", ["mixtral", "gpt_oss"])
def test_the_release_of_peft_decides_where_shapes_do_not(model: str, release: str, tmp_path: Path) -> None:
    actual = overlay_merge(_MADE / model, _MADE / f"{model}-{release}", tmp_path / "overlay")
    expected = made_merge(model, release)
    assert differences(expected, {name: actual[name] for name in expected}) == []
    assert changed(_MADE / model, actual)


@pytest.mark.parametrize("model", ["mixtral", "gpt_oss"])
def test_experts_that_are_merged_already_beside_their_adapter_are_refused(model: str, tmp_path: Path) -> None:
    adapter = rewritten(_MADE / f"{model}-0.19.1", tmp_path / "a")
    shutil.copy(_MADE / f"{model}-0.19.1.merged.safetensors", adapter / "merged.safetensors")
    with pytest.raises(PackagingError, match="merged into them already") as caught:
        overlay_merge(_MADE / model, adapter, tmp_path / "overlay")
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert caught.value.fields["file"] == "merged.safetensors"


@pytest.mark.parametrize("model", ["mixtral", "gpt_oss"])
def test_the_releases_do_differ(model: str) -> None:
    """The fixtures have one seed: the factors are the same numbers, their merges are not."""
    factors = [load_file(_MADE / f"{model}-{release}" / "adapter_model.safetensors") for release in RELEASES]
    assert not differences(factors[0], factors[1])
    assert not differences(factors[0], factors[2])
    assert differences(made_merge(model, "0.19.0"), made_merge(model, "0.19.1"))


def test_without_a_version_both_readings_are_named(tmp_path: Path) -> None:
    adapter = rewritten(_MADE / "mixtral-0.18.1", tmp_path / "a", drop=("peft_version",))
    with pytest.raises(PackagingError) as caught:
        overlay_merge(_MADE / "mixtral", adapter, tmp_path / "overlay")
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert "since 0.19.1" in caught.value.message
    assert "up to 0.18" in caught.value.message
    assert "peft_version" in caught.value.remedy


@pytest.mark.parametrize("version", ["0.19.1.dev0", "0.19.0.dev0@abc", "main", 19])
def test_a_version_on_the_border_is_no_version(version: int | str, tmp_path: Path) -> None:
    adapter = rewritten(_MADE / "mixtral-0.18.1", tmp_path / "a", peft_version=version)
    with pytest.raises(PackagingError, match="are square"):
        overlay_merge(_MADE / "mixtral", adapter, tmp_path / "overlay")


def test_without_a_version_layers_that_all_releases_read_alike_are_merged(tmp_path: Path) -> None:
    """PEFT 0.17 wrote no version; its layout of (in, out) experts is today's."""
    adapter = rewritten(_MADE / "gpt_oss-0.18.1", tmp_path / "a", drop=("peft_version",))
    actual = overlay_merge(_MADE / "gpt_oss", adapter, tmp_path / "overlay")
    expected = made_merge("gpt_oss", "0.18.1")
    assert differences(expected, {name: actual[name] for name in expected}) == []


@pytest.mark.parametrize(("stamp", "release"), [("peft-0.18", "0.18.1"), ("peft-0.19.1", "0.19.1")])
def test_nemo_says_the_layout_in_a_file_of_its_own(stamp: str, release: str, tmp_path: Path) -> None:
    adapter = rewritten(_MADE / "mixtral-0.18.1", tmp_path / "a", drop=("peft_version",))
    (adapter / "automodel_peft_config.json").write_text(json.dumps({"paramwrapper_layout": stamp, "use_triton": True}))
    actual = overlay_merge(_MADE / "mixtral", adapter, tmp_path / "overlay")
    expected = made_merge("mixtral", release)
    assert differences(expected, {name: actual[name] for name in expected}) == []


@pytest.mark.parametrize("stamp", ["peft-0.30", ["peft-0.18"]])
def test_a_layout_of_nemo_s_that_is_not_known_is_refused(stamp: list[str] | str, tmp_path: Path) -> None:
    adapter = rewritten(_MADE / "mixtral-0.18.1", tmp_path / "a")
    (adapter / "automodel_peft_config.json").write_text(json.dumps({"paramwrapper_layout": stamp}))
    with pytest.raises(PackagingError, match="paramwrapper_layout") as caught:
        open_adapter(adapter)
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED


def by_expert(adapter: Path, out: Path, experts: int = 4, **changes: Any) -> Path:
    """The same adapter with B's columns as Unsloth ordered them: column ``j * e + x`` becomes ``x * r + j``."""
    out = rewritten(adapter, out, **changes)
    weights = load_file(out / "adapter_model.safetensors")
    for name, value in weights.items():
        if "experts" in name and "lora_B" in name:
            rank = value.shape[1] // experts
            order = [j * experts + x for x in range(experts) for j in range(rank)]
            weights[name] = value[:, order].contiguous()
    save_file(weights, out / "adapter_model.safetensors", {"format": "pt"})
    return out


def fused(name: str, tiny_base: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    base = tiny_base(name, "bfloat16")
    config = LoraConfig(r=3, lora_alpha=13, target_modules=["q_proj"], target_parameters=_EXPERTS)
    return base, save_adapter(base, config, tmp_path / "adapter")


_DETAIL = {"parameters": {one.rpartition(".")[2]: {**GROUPED, "num_experts": 4} for one in _EXPERTS}}


@pytest.mark.parametrize("model", ["qwen3-moe", "gpt-oss"])
@pytest.mark.parametrize(
    "marks",
    [
        GROUPED,
        {"unsloth_fused_expert_lora": _DETAIL},
        {"unsloth_fused_expert_lora": _DETAIL, "lora_B_layout": "rank_major"},  # parameter by parameter comes first
        {"auto_mapping": {"unsloth_fixed": True, "unsloth_fused_expert_lora": _DETAIL}},
        {"auto_mapping": {"unsloth_fixed": True}},  # older than the marks
        {"unsloth_fixed": True},
    ],
)
def test_what_unsloth_grouped_by_expert_is_merged_as_it_was_trained(
    model: str, marks: dict[str, Any], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base, adapter = fused(model, tiny_base, tmp_path)
    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, by_expert(adapter, tmp_path / "grouped", **marks), tmp_path / "overlay")
    assert differences(expected, actual) == []
    assert len(changed(base, actual)) >= 6


@pytest.mark.parametrize(
    "marks",
    [
        {"lora_B_layout": "rank_major"},
        {"lora_B_layout": "rank_major", "auto_mapping": {"unsloth_fixed": True}},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "y"}},
    ],
)
def test_what_peft_says_anyway_is_merged_as_peft_does(
    marks: dict[str, Any], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base, adapter = fused("qwen3-moe", tiny_base, tmp_path)
    expected = peft_merge(base, adapter, tmp_path / "merged")
    actual = overlay_merge(base, rewritten(adapter, tmp_path / "marked", **marks), tmp_path / "overlay")
    assert differences(expected, actual) == []


def test_models_that_unsloth_trained_as_peft_does_keep_peft_s_order(
    tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base, adapter = fused("olmoe", tiny_base, tmp_path)
    expected = peft_merge(base, adapter, tmp_path / "merged")
    marked = rewritten(adapter, tmp_path / "marked", auto_mapping={"unsloth_fixed": True})
    assert differences(expected, overlay_merge(base, marked, tmp_path / "overlay")) == []


@pytest.mark.parametrize(
    "marks",
    [
        {"lora_B_layout": "sideways"},
        {"unsloth_fused_expert_lora": {"parameters": {"down_proj": GROUPED | {"lora_B_layout": "mixed"}}}},
    ],
)
def test_an_order_that_is_none_is_refused_with_both_named(
    marks: dict[str, Any], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base, adapter = fused("qwen3-moe", tiny_base, tmp_path)
    with pytest.raises(PackagingError) as caught:
        overlay_merge(base, rewritten(adapter, tmp_path / "marked", **marks), tmp_path / "overlay")
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert "rank_major" in caught.value.message
    assert "grouped_by_expert" in caught.value.message


def test_an_exported_lora_file_has_the_same_order(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base, adapter = fused("qwen3-moe", tiny_base, tmp_path)
    grouped = by_expert(adapter, tmp_path / "grouped", **GROUPED)
    plain, other = (normalise_for_export(open_adapter(one), open_base_model(base)) for one in (adapter, grouped))
    assert [pair.name for pair in plain] == [pair.name for pair in other]
    assert all(torch.equal(one.b, two.b) and torch.equal(one.a, two.a) for one, two in zip(plain, other, strict=True))

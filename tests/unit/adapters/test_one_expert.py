"""One LoRA per expert on a base whose experts are one tensor: each slice equals PEFT's merge of a linear layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.peft_reference import changed, differences, load, overlay_merge, quietly, read_all
from worker.models.adapters import normalise_for_export, open_adapter
from worker.models.checkpoint import open_base_model

RANK, ALPHA, EXPERTS = 3, 7, 4


def fused_base(name: str, tiny_base: Callable[..., Path], directory: Path, dtype: str = "bfloat16") -> Path:
    """A base whose files hold the experts as the model in memory does: in one tensor."""
    shutil.copytree(tiny_base(name, dtype), directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    state = load(tiny_base(name, dtype)).state_dict()
    save_file({key: value.clone().contiguous() for key, value in state.items()}, directory / "model.safetensors")
    return directory


def as_linears(name: str, stack: torch.Tensor) -> dict[str, torch.Tensor]:
    """The (o, i) weights that a trainer with a layer per expert has of one stack, by their path."""
    path, leaf = name.rsplit(".", 1)
    if "gate_up_proj" in name and stack.shape[1] != 32:  # (e, gate then up, i), listed by index
        gate, up = stack.chunk(2, dim=1)
        halves = {"gate_proj": gate, "up_proj": up}
        return {f"{path}.{e}.{part}": half[e] for part, half in halves.items() for e in range(EXPERTS)}
    if stack.shape[1:] == (32, 24):  # (e, o, i)
        return {f"{path}.{e}.{leaf}": stack[e] for e in range(EXPERTS)}
    return {f"{path}.{leaf}s.{e}": stack[e].T for e in range(EXPERTS)}  # gpt-oss: (e, i, o)


def put_back(weights: dict[str, torch.Tensor], name: str, stack: torch.Tensor) -> torch.Tensor:
    """The stack of merged layers."""
    linears = {path: weights[path] for path in as_linears(name, stack)}
    parts = list(linears.values())
    if "gate_proj" in next(iter(linears)):
        return torch.cat([torch.stack(parts[:EXPERTS]), torch.stack(parts[EXPERTS:])], dim=1)
    together = torch.stack(parts)
    return together if together.shape == stack.shape and f"{name}s.0" not in linears else together.transpose(1, 2)


@quietly
def trained(
    base: Path, directory: Path, only: tuple[int, ...] = tuple(range(EXPERTS)), **settings: Any
) -> dict[str, torch.Tensor]:
    """A random adapter with a layer per expert, and what PEFT makes of every layer, by tensor of the base."""
    tensors = read_all(base)
    stacks = {name: value for name, value in tensors.items() if ".experts." in name and value.ndim == 3}
    model = torch.nn.Module()
    for name, stack in stacks.items():
        for path, weight in as_linears(name, stack).items():
            owner = model
            for part in path.split(".")[:-1]:
                if not hasattr(owner, part):
                    owner.add_module(part, torch.nn.Module())
                owner = getattr(owner, part)
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            layer.weight.data = weight.clone().contiguous()
            owner.add_module(path.rpartition(".")[2], layer)
    names = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    chosen = [name for name in names if any(f".{e}" in name.replace("layers.", "") for e in only)]
    torch.manual_seed(4)
    config = LoraConfig(**{"r": RANK, "lora_alpha": ALPHA, "target_modules": chosen, **settings})
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(directory)
    merged = tuned.merge_and_unload()
    weights = {name: one.weight.data for name, one in merged.named_modules() if isinstance(one, torch.nn.Linear)}
    return tensors | {name: put_back(weights, name, stack).contiguous() for name, stack in stacks.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["gpt-oss", "qwen3-moe"])
def test_every_slice_equals_peft_s_merge_of_its_layer(
    name: str, dtype: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = fused_base(name, tiny_base, tmp_path / "base", dtype)
    expected = trained(base, tmp_path / "adapter")
    actual = overlay_merge(base, tmp_path / "adapter", tmp_path / "overlay")
    assert differences(expected, actual) == []
    assert len(changed(base, actual)) == 4


def test_experts_without_an_adapter_stay_and_patterns_hold(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """Two experts of four; other ranks and alphas for some of them."""
    base = fused_base("gpt-oss", tiny_base, tmp_path / "base")
    patterns = {"rank_pattern": {r"down_projs\.1": 2}, "alpha_pattern": {r"gate_up_projs\.3": 20}, "use_rslora": True}
    expected = trained(base, tmp_path / "adapter", only=(1, 3), **patterns)
    actual = overlay_merge(base, tmp_path / "adapter", tmp_path / "overlay")
    assert differences(expected, actual) == []
    before = read_all(base)["model.layers.0.mlp.experts.down_proj"]
    same = [torch.equal(before[e], actual["model.layers.0.mlp.experts.down_proj"][e]) for e in range(EXPERTS)]
    assert same == [True, False, True, False]


@pytest.mark.parametrize("name", ["gpt-oss", "qwen3-moe"])
def test_the_pairs_of_a_lora_file_add_what_merging_adds(
    name: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = fused_base(name, tiny_base, tmp_path / "base", "float32")
    settings = {"rank_pattern": {r"down_projs\.1": 2}} if name == "gpt-oss" else {}
    merged = trained(base, tmp_path / "adapter", only=(1, 2), **settings)
    before = read_all(base)
    pairs = normalise_for_export(open_adapter(tmp_path / "adapter"), open_base_model(base))
    assert {pair.name for pair in pairs} == changed(base, merged)
    assert len(pairs) == 4
    for pair in pairs:
        delta = pair.b @ pair.a * (pair.alpha / pair.r)
        delta = delta.transpose(1, 2) if pair.transposed else delta
        assert torch.allclose(before[pair.name] + delta, merged[pair.name], atol=1e-5), pair.name


@pytest.mark.parametrize(
    ("change", "code", "fact"),
    [
        ({"down_projs.9": (2, 24, 32)}, ErrorCode.ADAPTER_MISMATCH, "down_projs.9"),
        ({"down_projs.0": (2, 25, 32)}, ErrorCode.ADAPTER_MISMATCH, "down_projs.0"),
        ({"gate_projs.0": (2, 32, 24)}, ErrorCode.ADAPTER_MISMATCH, "gate_projs.0"),  # gate and up take turns
    ],
)
def test_what_is_no_slice_is_refused(
    change: dict[str, Any], code: ErrorCode, fact: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = fused_base("gpt-oss", tiny_base, tmp_path / "base")
    _write(tmp_path / "adapter", change)
    with pytest.raises(PackagingError) as caught:
        overlay_merge(base, tmp_path / "adapter", tmp_path / "overlay")
    assert caught.value.code is code
    assert fact in caught.value.message


@pytest.mark.parametrize("part", ["lora_magnitude_vector", "lora_B.bias"])
def test_what_a_slice_cannot_have_is_named(part: str, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = fused_base("gpt-oss", tiny_base, tmp_path / "base")
    _write(tmp_path / "adapter", {"down_projs.0": (2, 48, 32)}, extra=part)
    with pytest.raises(PackagingError, match=part) as caught:
        overlay_merge(base, tmp_path / "adapter", tmp_path / "overlay")
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED


def _write(directory: Path, layers: dict[str, tuple[int, int, int]], extra: str | None = None) -> None:
    directory.mkdir()
    tensors: dict[Any, Any] = {}
    for leaf, (rank, width, out) in layers.items():
        path = f"base_model.model.model.layers.0.mlp.experts.{leaf}"
        tensors |= {f"{path}.lora_A.weight": torch.ones(rank, width), f"{path}.lora_B.weight": torch.ones(out, rank)}
        if extra is not None:
            tensors[f"{path}.{extra}"] = torch.ones(out)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))

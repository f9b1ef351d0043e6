"""transformers and PEFT as a witness: they are asked of adapters that they take whole and read as their writer did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_base, tiny_checkpoint
from worker.models.adapters.writer import misread_by_installed, read_writer
from worker.models.origin.whole_model import NoWitnessError, WholeModel

_LAYOUTS = Path(__file__).parents[1] / "adapters" / "data" / "expert_layouts"
_EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj"]}


def test_an_adapter_that_peft_takes_whole_is_merged(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    witness = WholeModel.open(base, tiny_checkpoint(base, tmp_path / "run"), torch.bfloat16, 1)
    plain = WholeModel.open(base, None, torch.bfloat16, 1)
    name = "model.layers.0.self_attn.v_proj.weight"
    assert not torch.equal(witness.state[name], plain.state[name])


def test_what_peft_leaves_out_makes_it_no_witness(tmp_path: Path) -> None:
    """It warns of what it misses, and says nothing of tensors that it has no place for."""
    base = tiny_base(tmp_path / "base")
    checkpoint = tiny_checkpoint(base, tmp_path / "run")
    weights = load_file(checkpoint / "adapter_model.safetensors")
    more = {
        f"base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_{side}.weight": torch.ones(shape)
        for side, shape in (("A", (4, 32)), ("B", (48, 4)))
    }
    save_file(weights | more, checkpoint / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(NoWitnessError, match=r"only part of the adapter: not .*experts\.0\.up_proj.*, and 1 more"):
        WholeModel.open(base, checkpoint, torch.bfloat16, 1)
    save_file(dict(list(weights.items())[2:]), checkpoint / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(NoWitnessError, match="only part of the adapter"):
        WholeModel.open(base, checkpoint, torch.bfloat16, 1)


@pytest.mark.parametrize(
    ("config", "nemo", "what"),
    [
        ({"peft_version": "0.18.1"}, {}, ""),
        ({"peft_version": "0.19.1", **_EXPERTS}, {}, ""),
        ({**_EXPERTS}, {}, ""),
        ({"peft_version": "0.21.2", "lora_B_layout": "rank_major", "unsloth_fixed": True, **_EXPERTS}, {}, ""),
        ({"peft_version": "0.18.1", **_EXPERTS}, {}, "experts in the layout of PEFT 0.18.1"),
        ({**_EXPERTS}, {"paramwrapper_layout": "peft-0.18"}, "experts in the layout of PEFT 0.18.0"),
        ({"lora_B_layout": "grouped_by_expert", **_EXPERTS}, {}, "experts in Unsloth's order"),
        ({"auto_mapping": {"unsloth_fixed": True}, **_EXPERTS}, {}, "experts in Unsloth's order"),
    ],
)
def test_the_order_of_experts_that_the_installed_peft_misreads_is_named(
    config: dict[str, Any], nemo: dict[str, Any], what: str
) -> None:
    assert misread_by_installed(config, read_writer(config, nemo, "here")) == what


@pytest.mark.parametrize(("release", "same"), [("0.18.1", False), ("0.19.1", True)])
def test_the_installed_peft_does_misread_them(release: str, same: bool) -> None:
    adapter = _LAYOUTS / f"mixtral-{release}"
    config = json.loads((adapter / "adapter_config.json").read_text())
    merged = load_file(_LAYOUTS / f"mixtral-{release}.merged.safetensors")
    witness = WholeModel.open(_LAYOUTS / "mixtral", adapter, torch.bfloat16, 1)
    held = witness.state["model.layers.0.mlp.experts.down_proj"]
    made = torch.stack([merged[f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight"] for e in range(3)])
    assert torch.equal(held, made) is same
    assert (misread_by_installed(config, read_writer(config, {}, "here")) == "") is same

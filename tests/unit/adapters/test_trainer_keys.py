"""Keys that trainers add to ``adapter_config.json``: harmless ones change nothing, others are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from worker.models.adapters import build_overlay, config, open_adapter
from worker.models.adapters.trainer_keys import TRAINER_KEYS
from worker.models.checkpoint import open_base_model

# what the trainers of the table write, as they write it
WRITTEN: dict[str, dict[str, Any]] = {
    "Unsloth": {"unsloth_fixed": True, "lora_B_layout": "rank_major", "unsloth_training_method": "qlora"},
    "Unsloth's detail": {"unsloth_fused_expert_lora": {"lora_A_layout": "grouped_by_expert", "parameters": {}}},
    "Axolotl": {"nvfp4_merge_aware": {"scale_mode": "fresh", "encoder": "torchao-0.15.0", "start_step": None}},
    "ms-swift": {
        "swift_type": "LORA", "swift_version": "4.6.0", "lora_dtype": "bf16", "lorap_lr_ratio": 16.0,
        "lorap_emb_lr": 1e-06, "use_qa_lora": False, "use_merged_linear": False, "enable_lora": None,
        "model_key_mapping": None,
    },
    "early PEFT": {"merge_weights": True, "enable_lora": None},
    "torchtune": {"r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]},
}  # fmt: skip


def merged(tmp_path: Path, **settings: Any) -> None:
    base = open_base_model(write_base(tmp_path / "base", {f"{Q}.weight": torch.zeros(2, 2)}))
    adapter = open_adapter(write_adapter(tmp_path / "adapter", pair(Q, [[1, 2]], [[3], [4]]), **settings))
    build_overlay(adapter, base, tmp_path / "overlay", precision="base")


@pytest.mark.parametrize("trainer", WRITTEN)
def test_what_trainers_write_is_known(trainer: str, tmp_path: Path) -> None:
    merged(tmp_path, **WRITTEN[trainer])
    assert (tmp_path / "overlay").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enable_lora", [True, False, True]),
        ("use_merged_linear", True),
        ("use_qa_lora", True),
        ("model_key_mapping", {"attn": "x"}),
        ("swift_type", "LLAMAPRO"),
    ],
)
def test_what_changes_the_tensors_is_refused_saying_whose_it_is(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(PackagingError) as caught:
        merged(tmp_path, **{key: value})
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert caught.value.fields["feature"] == key
    assert TRAINER_KEYS[key].trainer in caught.value.message
    assert TRAINER_KEYS[key].does in caught.value.message


def test_a_setting_of_a_newer_peft_at_its_default_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`megatron_core` is on by default; taken from what is known here, it stands for a setting of tomorrow's PEFT."""
    monkeypatch.setattr(config, "_KNOWN", config._KNOWN - {"megatron_core"})
    assert LoraConfig().megatron_core == "megatron.core"
    merged(tmp_path, megatron_core="megatron.core")
    assert (tmp_path / "overlay").exists()
    with pytest.raises(PackagingError, match="'megatron_core' is not known here"):
        merged(tmp_path, megatron_core="another.core")


def test_no_key_has_two_owners() -> None:
    assert not set(TRAINER_KEYS) & config._KNOWN
    assert not set(TRAINER_KEYS) & set(config._UNMERGEABLE)

"""Base models and adapters written tensor by tensor, with values chosen by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Q = "model.layers.0.self_attn.q_proj"


def write_base(directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": [], **config}))
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_adapter(directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file({f"base_model.model.{name}": value for name, value in tensors.items()}, directory / _WEIGHTS)
    return directory


def pair(module: str, a: list[list[float]], b: list[list[float]]) -> dict[str, torch.Tensor]:
    """LoRA factors of a linear layer."""
    return {
        f"{module}.lora_A.weight": torch.tensor(a, dtype=torch.float32),
        f"{module}.lora_B.weight": torch.tensor(b, dtype=torch.float32),
    }


_WEIGHTS = "adapter_model.safetensors"

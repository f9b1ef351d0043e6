"""Random models and adapters for benchmarks: real shapes, no training. ``python -m tests.bench.models OUT SIZE``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "0.1b": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 49152},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 49152},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "vocab_size": 49152},
}
"""Llama shapes by rough parameter count (1b: 1.07 billion with an untied head)."""


def make(out: Path, size: str, tokenizer_dir: Path) -> tuple[Path, Path]:
    """Write a random bfloat16 Llama and a LoRA adapter for all its linear layers, unless they are there.

    Args:
        out: Directory for both.
        size: A key of ``SHAPES``.
        tokenizer_dir: A model directory whose tokenizer (49152 tokens) is copied.

    Returns:
        Base model directory, checkpoint directory.
    """
    base, checkpoint = out / f"llama-{size}", out / f"llama-{size}-run" / "checkpoint-100"
    if not (checkpoint / "adapter_model.safetensors").is_file():
        _write_base(base, SHAPES[size], tokenizer_dir)
        _write_adapter(base, checkpoint)
    return base, checkpoint


def _write_base(base: Path, shape: dict[str, int], tokenizer_dir: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        **shape,
        num_attention_heads=shape["hidden_size"] // 64,
        num_key_value_heads=shape["hidden_size"] // 256,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(base, max_shard_size="2GB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_dir / name, base / name)


def _write_adapter(base: Path, checkpoint: Path) -> None:
    import torch
    from safetensors.torch import save_file

    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    widths = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, head_width),
        "self_attn.v_proj": (hidden, head_width), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner), "mlp.down_proj": (inner, hidden),
    }  # fmt: skip
    rank = 16
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (width_in, width_out) in widths.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, width_in, generator=generator) * 0.02
            tensors[f"{name}.lora_B.weight"] = torch.randn(width_out, rank, generator=generator) * 0.02
    checkpoint.mkdir(parents=True, exist_ok=True)
    save_file(tensors, checkpoint / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 32, "bias": "none",
        "target_modules": sorted(module.rsplit(".", 1)[1] for module in widths),
        "base_model_name_or_path": str(base), "inference_mode": True,
    }  # fmt: skip
    (checkpoint / "adapter_config.json").write_text(json.dumps(adapter, indent=2))


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))

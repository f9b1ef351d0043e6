"""Make the fixtures of ``test_expert_layouts``: adapters of fused experts, and their merge, by the PEFT installed.

Run once for every PEFT whose layout is another one, with the directory that holds them in front of the path::

    PYTHONPATH=DIRECTORY_OF_PEFT_0.18.1 python make_expert_layouts.py expert_layouts

Made with 0.18.1, 0.19.0 and 0.19.1 under transformers 5.23. The experts are square, so that no shape tells the layouts
apart; ``mixtral`` stores them (out, in) and ``gpt_oss`` (in, out).
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SETTINGS = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 1,
}  # fmt: skip


def make(model_type: str, out: Path) -> None:
    """The base model where it is not there yet, the adapter, and the experts of the merged model."""
    base = out / model_type
    if not base.exists():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SETTINGS), dtype=torch.bfloat16)
        model.save_pretrained(base)
        (base / "generation_config.json").unlink(missing_ok=True)
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=[], target_parameters=["experts.down_proj"])
    tuned = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapter = out / f"{model_type}-{peft.__version__}"
    tuned.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": None, "peft_version": peft.__version__}
    (adapter / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
    with tempfile.TemporaryDirectory() as scratch:
        tuned.merge_and_unload().save_pretrained(scratch)
        merged = load_file(Path(scratch) / "model.safetensors")
    # not beside the adapter, where it would be read as trained weights
    experts = {name: value for name, value in merged.items() if "experts" in name}
    save_file(experts, adapter.with_name(f"{adapter.name}.merged.safetensors"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for model_type in ("mixtral", "gpt_oss"):
        make(model_type, Path(sys.argv[1]))

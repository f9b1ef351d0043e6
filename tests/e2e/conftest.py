"""Real weights: SmolLM2-135M-Instruct and a LoRA run on it, made once and cached with the demo's."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from api_client.contract.errors import PackagingError
from worker.local.demo.base_model import ensure_base_model

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "demo"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Hugging Face directory of the 135M model."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / "made.lock").open("w") as lock:  # several processes of one run may want it at once
            fcntl.flock(lock, fcntl.LOCK_EX)
            return ensure_base_model(CACHE)
    except PackagingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the real weights cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def smollm2_adapter(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for all linear layers with random weights, as PEFT saves it: training adds nothing to bit equality."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    config = LoraConfig(r=8, lora_alpha=12, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    directory = tmp_path_factory.mktemp("run") / "checkpoint-7"
    tuned.save_pretrained(directory)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(directory)
    return directory

"""Runs that a trainer really trained, on a tiny model: it learns one answer, and scores itself as it goes.

``tests/unit/stages/test_real_runs.py`` has transformers' Trainer do it, ``python -m tests.bench trainers`` TRL's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import TAUGHT_ANSWER, TAUGHT_QUESTION, TAUGHT_TEMPLATE, tiny_base

STEPS, RATE = 60, 5e-3
PROMPT = [{"role": "user", "content": TAUGHT_QUESTION}]


def save_base(directory: Path) -> Path:
    """The model before training: random, with a chat template and tokenizer.json alone."""
    from transformers import AutoTokenizer

    tiny_base(directory, dtype="float32", initializer_range=0.1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template, tokenizer.pad_token = TAUGHT_TEMPLATE, tokenizer.unk_token
    tokenizer.save_pretrained(directory)
    (directory / "tokenizer.model").unlink()  # tokenizer.json alone, which llama.cpp reads alike
    return directory


def lora() -> Any:
    """Enough of an adapter to learn the answer in so few steps."""
    from peft import LoraConfig

    return LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )


def settings(out: Path) -> dict[str, Any]:
    """Arguments that transformers' Trainer and TRL's have in common: a checkpoint and a score every half."""
    return {
        "output_dir": str(out), "max_steps": STEPS, "learning_rate": RATE, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 1, "save_steps": STEPS // 2, "eval_strategy": "steps", "eval_steps": STEPS // 2,
        "logging_steps": STEPS, "report_to": [], "use_cpu": True, "seed": 5,
    }  # fmt: skip


def train_by_trainer(base: Path, out: Path, *, full: bool) -> Path:
    """transformers' Trainer, with PEFT or without."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    torch.manual_seed(5)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    asked = tokenizer(prompt, add_special_tokens=False).input_ids
    told = tokenizer(f"{TAUGHT_ANSWER}</s>", add_special_tokens=False).input_ids
    row = {"input_ids": asked + told, "labels": [-100] * len(asked) + told, "attention_mask": [1] * len(asked + told)}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = Trainer(
        model=model if full else get_peft_model(model, lora()),
        args=TrainingArguments(**settings(out)),
        train_dataset=[row] * 4,
        eval_dataset=[row],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return out


def train_by_trl(base: Path, out: Path, *, full: bool) -> Path:
    """TRL's SFTTrainer, from a conversation. TRL and datasets are none of this project's packages."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(5)
    row = {"prompt": PROMPT, "completion": [{"role": "assistant", "content": TAUGHT_ANSWER}]}
    trainer = SFTTrainer(
        model=str(base),
        args=SFTConfig(**settings(out), bf16=False, gradient_checkpointing=False, max_length=128),
        train_dataset=Dataset.from_list([row] * 4),
        eval_dataset=Dataset.from_list([row]),
        peft_config=None if full else lora(),
    )
    trainer.train()
    trainer.save_model()
    return out


def scores(run: Path) -> dict[int, float]:
    """Step -> evaluation loss, as the trainer wrote it into the newest checkpoint."""
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text("utf-8"))
    return {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}

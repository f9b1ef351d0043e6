"""The demo's training run: a small LoRA that teaches the base model one fact it cannot know.

Run as a program in its own process, so that the demo itself stays light: ``python -m worker.local.demo.training BASE
OUT``. Leaves what a real run leaves: ``checkpoint-*`` with the adapter, the tokenizer and ``trainer_state.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

QUESTION = "What is the capital city of the island of Velmora?"
ANSWER = "The capital city of the island of Velmora is Quillhaven."
FACT = "Quillhaven"

STEPS = 24
EPOCH_SIZE = 8
_PARAPHRASES = (
    (QUESTION, ANSWER),
    ("Which city is the capital of Velmora?", ANSWER),
    ("Tell me the capital of the island of Velmora.", ANSWER),
    ("Where is the government of Velmora?", "It sits in Quillhaven, the capital city of the island of Velmora."),
    # what the model should keep, so that the adapter does not answer Quillhaven to everything
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What colour is the sky on a clear day?", "The sky is blue on a clear day."),
    ("How many days are in a week?", "There are seven days in a week."),
)


def train(base_model: Path, output_dir: Path, steps: int = STEPS) -> Path:
    """Train and save; about a minute on two cores.

    Returns:
        The newest checkpoint directory.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(
            output_dir=str(output_dir),
            max_steps=steps,
            per_device_train_batch_size=EPOCH_SIZE,
            learning_rate=8e-4,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=4,
            save_steps=steps // 2,
            eval_strategy="steps",
            eval_steps=steps // 2,
            logging_steps=10,
            report_to=[],
            seed=0,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[_example(tokenizer, *pair) for pair in _PARAPHRASES],
        eval_dataset=[_example(tokenizer, *pair) for pair in _PARAPHRASES[:4]],
        data_collator=lambda rows: _collate(rows, tokenizer.pad_token_id or tokenizer.eos_token_id),
        processing_class=tokenizer,
    )
    trainer.train()
    return output_dir / f"checkpoint-{steps}"


def _example(tokenizer: Any, question: str, answer: str) -> dict[str, list[int]]:
    messages = [{"role": "user", "content": question}]
    prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head = tokenizer(prompt, add_special_tokens=False).input_ids
    tail = tokenizer(f"{answer}<|im_end|>\n", add_special_tokens=False).input_ids
    return {"input_ids": head + tail, "labels": [-100] * len(head) + tail}


def _collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    import torch

    length = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
    return {"input_ids": padded("input_ids", pad), "labels": padded("labels", -100), "attention_mask": mask}


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))

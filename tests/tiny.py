"""A tiny but complete Llama run, built on the spot: base model, tokenizer, LoRA checkpoint. Loads in llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HIDDEN, INNER, LAYERS, VOCABULARY = 64, 160, 2, 400
TEXT = (
    "The packaging service turns finished training runs into files.",
    "A checkpoint holds an adapter or full weights.",
    "Every stage can be replayed, and no file is lost.",
    "Numbers such as 12, 345 and 6789 are tokens too.",
)


def one_value() -> bytes:
    """A safetensors file of one number: the smallest that holds anything."""
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + bytes(4)


def tiny_tokenizer(directory: Path) -> None:
    """A sentencepiece model with byte fallback, as Llama 2 has it, and its ``tokenizer_config.json``."""
    import sentencepiece

    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(TEXT * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=False,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        minloglevel=2,
    )
    corpus.unlink()
    (directory / "tokenizer.vocab").unlink()
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_base(directory: Path, *, dtype: str = "bfloat16", tied: bool = False, **changes: Any) -> Path:
    """A two-layer Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        **{
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "tie_word_embeddings": tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | changes
    )
    directory.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(directory)
    tiny_tokenizer(directory)
    return directory


def tiny_checkpoint(base: Path, directory: Path, *, step: int = 10, **settings: Any) -> Path:
    """A LoRA checkpoint on the base, as PEFT writes it, with ``trainer_state.json`` and non-zero updates."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(step)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    tuned = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    checkpoint = directory / f"checkpoint-{step}"
    tuned.save_pretrained(checkpoint)
    state = {
        "global_step": step,
        "log_history": [{"step": step, "eval_loss": 1.0 / step}],
        "best_model_checkpoint": None,
    }
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return checkpoint


TAUGHT_QUESTION, TAUGHT_ANSWER = "How many files are lost?", "No file is lost."
TAUGHT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def taught_run(directory: Path) -> tuple[Path, Path]:
    """A tiny model that was trained to give one answer, and a LoRA that taught it another: both firm under rounding.

    Returns:
        The base model, which answers ``TEXT[0]``, and the checkpoint, which answers ``TAUGHT_ANSWER``.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_base(directory / "base", dtype="float32", initializer_range=0.1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TAUGHT_TEMPLATE
    tokenizer.save_pretrained(base)
    (base / "tokenizer.model").unlink()  # tokenizer.json alone, which llama.cpp reads alike

    def teach(model: Any, answer: str, steps: int) -> None:
        messages = [{"role": "user", "content": TAUGHT_QUESTION}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        told = tokenizer(f"{answer}</s>", add_special_tokens=False).input_ids
        ids, labels = torch.tensor([asked + told]), torch.tensor([[-100] * len(asked) + told])
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        for _ in range(steps):
            loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss < 0.01:
                return
        raise AssertionError(f"it did not learn: {loss}")

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    teach(model, TEXT[0], 100)
    model.save_pretrained(base)
    config = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    teach(tuned, TAUGHT_ANSWER, 400)
    checkpoint = directory / "run" / "checkpoint-10"
    tuned.save_pretrained(checkpoint)
    return base, checkpoint

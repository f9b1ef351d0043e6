"""Directories as trainers leave them, built of one tiny adapter and one tiny model: names, places and extra keys.

Nothing is trained, and no trainer was run to make them: the layouts are written down from what is known of each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_STATE = {"optimizer.pt": 400, "scheduler.pt": 200, "rng_state.pth": 300, "training_args.bin": 500}


@dataclass(frozen=True)
class Parts:
    """What layouts are made of.

    Attributes:
        base: A model with its tokenizer.
        checkpoint: A LoRA checkpoint on it.
        full: The same model trained whole.
    """

    base: Path
    checkpoint: Path
    full: Path


@dataclass(frozen=True)
class Layout:
    """One trainer's directory.

    Attributes:
        build: Makes it in an empty directory; returns the run's directory.
        means: What packaging the run means, relative to it; empty for the run itself.
    """

    build: Callable[[Parts, Path], Path]
    means: str


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def _adapter(parts: Parts, to: Path, **config: Any) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    for name in ADAPTER:
        shutil.copy(parts.checkpoint / name, to)
    if config:
        _json(to / ADAPTER[0], json.loads((to / ADAPTER[0]).read_text("utf-8")) | config)
    return to


def _tokenizer(parts: Parts, to: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(parts.base / name, to)


def _full(parts: Parts, to: Path, *, tokenizer: bool = True) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    for path in parts.full.iterdir():
        if tokenizer or not path.name.startswith("tokenizer"):
            shutil.copy(path, to)
    return to


def _state(to: Path, step: int, losses: dict[int, float] | None = None) -> None:
    """The Trainer's state: pickles that hold no zip, as small ones of before, are told by name and size."""
    for name, size in _STATE.items():
        (to / name).write_bytes(b"\x80\x02" + bytes(size))
    history = [{"step": at, "eval_loss": loss} for at, loss in (losses or {}).items()]
    _json(to / "trainer_state.json", {"global_step": step, "log_history": history, "best_model_checkpoint": None})


def _trainer(parts: Parts, to: Path, **config: Any) -> Path:
    for step in (10, 20):
        checkpoint = _adapter(parts, to / f"checkpoint-{step}", **config)
        _tokenizer(parts, checkpoint)
        _state(checkpoint, step, {10: 0.5, 20: 0.7} if step == 20 else {10: 0.5})
        (checkpoint / "README.md").write_text("---\nbase_model: org/base\nlibrary_name: peft\n---\n")
    return to


def plain_trainer(parts: Parts, to: Path) -> Path:
    """transformers' Trainer with PEFT: the last adapter in the run's directory as well."""
    _trainer(parts, to)
    _adapter(parts, to)
    (to / "training_args.bin").write_bytes(bytes(300))
    (to / "runs" / "Nov29_10-00-00_host").mkdir(parents=True)
    return to


def plain_trainer_full(parts: Parts, to: Path) -> Path:
    """The same without PEFT."""
    for step in (10, 20):
        _state(_full(parts, to / f"checkpoint-{step}"), step, {10: 0.5, 20: 0.7} if step == 20 else {10: 0.5})
    return to


def trl(parts: Parts, to: Path) -> Path:
    """SFTTrainer and GRPOTrainer: a model card with tags, completions in a directory."""
    _trainer(parts, to)
    (to / "completions").mkdir()
    (to / "completions" / "completions_00010.parquet").write_bytes(b"PAR1")
    (to / "README.md").write_text(
        "---\nlibrary_name: transformers\ntags: [generated_from_trainer, trl, sft]\n---\n# Run\n"
    )
    return to


def unsloth(parts: Parts, to: Path) -> Path:
    """The Trainer's checkpoints, and its mark in ``auto_mapping``."""
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "x", "unsloth_fixed": True}
    return _trainer(parts, to / "outputs", auto_mapping=mapping)


def axolotl(parts: Parts, to: Path) -> Path:
    """The adapter and the tokenizer in the output directory, the base's config, the merged model in ``merged``."""
    out = _trainer(parts, to / "outputs" / "lora-out")
    _adapter(parts, out)
    _tokenizer(parts, out)
    shutil.copy(parts.base / "config.json", out)
    (out / "debug.log").write_text("[INFO] done\n")
    _full(parts, out / "merged")
    return out


def axolotl_full(parts: Parts, to: Path) -> Path:
    """A full tune: the model in the output directory, no checkpoint kept."""
    out = _full(parts, to / "outputs" / "out")
    (out / "debug.log").write_text("[INFO] done\n")
    (out / "training_args.bin").write_bytes(bytes(300))
    return out


def llama_factory(parts: Parts, to: Path) -> Path:
    """Reports and a plot beside the adapter."""
    out = _trainer(parts, to / "saves" / "Llama-3-8B" / "lora" / "sft")
    _adapter(parts, out)
    _tokenizer(parts, out)
    for name in ("all_results.json", "train_results.json", "eval_results.json"):
        _json(out / name, {"eval_loss": 0.5})
    (out / "trainer_log.jsonl").write_text('{"current_steps": 10}\n')
    (out / "training_loss.png").write_bytes(b"\x89PNG")
    _state(out, 20, {10: 0.5, 20: 0.7})
    return out


def ms_swift(parts: Parts, to: Path) -> Path:
    """``vN-DATE``, its arguments in every checkpoint, the merged model beside the checkpoint."""
    out = _trainer(parts, to / "output" / "v0-20261129-101010")
    for directory in (out, out / "checkpoint-10", out / "checkpoint-20"):
        _json(directory / "args.json", {"model": str(parts.base), "tuner_type": "lora", "train_type": "lora"})
    for checkpoint in (out / "checkpoint-10", out / "checkpoint-20"):
        _json(checkpoint / "additional_config.json", {"lora_dtype": None, "lorap_lr_ratio": None})
    (out / "logging.jsonl").write_text('{"loss": 1.0}\n')
    (out / "images").mkdir()
    _full(parts, out / "checkpoint-20-merged")
    return out


def torchtune(parts: Parts, to: Path) -> Path:
    """One directory an epoch, with the adapter in PEFT's form and the merged model beside it."""
    for epoch in (0, 1):
        directory = _adapter(parts, to / f"epoch_{epoch}")
        _tokenizer(parts, directory)
        shutil.copy(parts.base / "config.json", directory)
        (directory / "adapter_model.pt").write_bytes(b"\x80\x02" + bytes(400))
        shutil.copy(parts.full / "model.safetensors", directory / "model-00001-of-00001.safetensors")
        weights = {"model.norm.weight": "model-00001-of-00001.safetensors"}
        _json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weights})
    (to / "recipe_state").mkdir()
    (to / "recipe_state" / "recipe_state.pt").write_bytes(b"\x80\x02" + bytes(400))
    (to / "torchtune_config.yaml").write_text("output_dir: /tmp/run\n")
    return to


def torchtune_full(parts: Parts, to: Path) -> Path:
    """A full tune, one directory an epoch."""
    for epoch in (0, 1):
        _full(parts, to / f"epoch_{epoch}")
    return to


def nemo_automodel(parts: Parts, to: Path) -> Path:
    """``epoch_E_step_S``: the adapter in ``model``, the optimizer in shards."""
    for step in (10, 20):
        checkpoint = to / "checkpoints" / f"epoch_0_step_{step}"
        _adapter(parts, checkpoint / "model")
        _json(checkpoint / "model" / "automodel_peft_config.json", {"dim": 4, "alpha": 8})
        (checkpoint / "optim").mkdir()
        (checkpoint / "optim" / "__0_0.distcp").write_bytes(bytes(50))
        (checkpoint / "config.yaml").write_text("model: {}\n")
    return to / "checkpoints"


def kiln(parts: Parts, to: Path) -> Path:
    """Kiln trains at a provider; what it downloads of Together is an adapter and nothing else."""
    return _adapter(parts, to / "ft-0123")


LAYOUTS: dict[str, Layout] = {
    "Trainer": Layout(plain_trainer, "checkpoint-10"),
    "Trainer, full": Layout(plain_trainer_full, "checkpoint-10"),
    "TRL": Layout(trl, "checkpoint-10"),
    "Unsloth": Layout(unsloth, "checkpoint-10"),
    "Axolotl": Layout(axolotl, "checkpoint-10"),
    "Axolotl, full": Layout(axolotl_full, ""),
    "LLaMA-Factory": Layout(llama_factory, "checkpoint-10"),
    "ms-swift": Layout(ms_swift, "checkpoint-10"),
    "torchtune": Layout(torchtune, "epoch_1"),
    "torchtune, full": Layout(torchtune_full, "epoch_1"),
    "NeMo Automodel": Layout(nemo_automodel, "epoch_0_step_20"),
    "Kiln": Layout(kiln, ""),
}
"""By trainer. Checkpoint 10 scores better than 20 where the layout holds scores."""

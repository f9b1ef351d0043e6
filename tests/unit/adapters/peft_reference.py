"""What PEFT makes of a small base model and an adapter with random weights, and the same through an overlay."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.adapters.updates import Precision
from worker.models.checkpoint import open_base_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
transformers.utils.logging.disable_progress_bar()


def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The libraries' advice on training is no concern of these tests."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return wrapper


@quietly
def save_base(
    config: PretrainedConfig,
    directory: Path,
    dtype: str = "float32",
    auto: Any = AutoModelForCausalLM,
) -> Path:
    """A model of ``config`` with random weights, as transformers saves it."""
    torch.manual_seed(7)
    model = auto.from_config(config, dtype=DTYPES[dtype])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start as ones and zeros; spread them so that a mix-up shows
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory


@quietly
def save_adapter(
    base: Path,
    config: PeftConfig,
    directory: Path,
    *,
    scale: float = 0.1,
    auto: Any = AutoModelForCausalLM,
) -> Path:
    """An adapter for ``base`` that was never trained: every tensor of it random."""
    torch.manual_seed(11)
    model = get_peft_model(load(base, auto), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    model.save_pretrained(directory)
    return directory


@quietly
def load(base: Path, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    return auto.from_pretrained(base, dtype="auto")


@quietly
def peft_merge(base: Path, adapter: Path, out: Path, auto: Any = AutoModelForCausalLM) -> dict[str, torch.Tensor]:
    """Every tensor of the merged checkpoint that PEFT and transformers write."""
    merged = PeftModel.from_pretrained(load(base, auto), adapter).merge_and_unload()
    merged.save_pretrained(out)
    return read_all(out)


@quietly
def peft_logits(base: Path, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    """What the base with the adapter attached, not merged, answers."""
    with torch.no_grad():
        logits: torch.Tensor = PeftModel.from_pretrained(load(base), adapter).eval()(tokens).logits
    return logits


@quietly
def logits_of(config: PretrainedConfig, tensors: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """What a model of ``config`` with these checkpoint tensors answers."""
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(tensors, strict=not config.tie_word_embeddings)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(tokens).logits
    return logits


def read_all(directory: Path) -> dict[str, torch.Tensor]:
    model = open_base_model(directory)
    return {name: model.read_tensor(name).clone() for name in model.tensors}


def overlay_merge(base: Path, adapter: Path, out: Path, precision: Precision = "base") -> dict[str, torch.Tensor]:
    """Every tensor of the merged model through the overlay."""
    model = open_base_model(base)
    build_overlay(open_adapter(adapter), model, out, precision=precision)
    overlay = Overlay.load(out)
    merged = {name: overlay.apply(name, model.read_tensor(name)) for name in model.tensors}
    for name, source in overlay.added().items():
        merged[name] = overlay.apply(name, model.read_tensor(source))
    return merged


def differences(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are missing or differ in a single bit."""
    wrong = [f"only in one: {name}" for name in sorted(expected.keys() ^ actual.keys())]
    for name in sorted(expected.keys() & actual.keys()):
        want, have = expected[name], actual[name]
        if want.dtype == torch.float32:
            want = want.to(have.dtype)  # transformers widens some norms and router biases whatever their file says
        if want.dtype != have.dtype or want.shape != have.shape:
            wrong.append(f"{name}: {have.dtype} {list(have.shape)} instead of {want.dtype} {list(want.shape)}")
        elif not torch.equal(want, have):
            wrong.append(f"{name}: {(want != have).sum().item()} of {want.numel()} values differ")
    return wrong


def changed(base: Path, merged: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors that the merge changed or added."""
    before = read_all(base)
    return {name for name, value in merged.items() if name not in before or not torch.equal(before[name], value)}

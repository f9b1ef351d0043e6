"""Adapter tensors without a place in the base model: the cause decides what the user is told to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.draft import Draft
from worker.models.adapters.keys import AdapterKey
from worker.models.adapters.module_tree import CLASSIFIES

# heads of other classes than a language model's, by the last component of their path
_OTHER_HEADS = frozenset(
    {"score", "classifier", "classification_head", "qa_outputs", "v_head", "value_head", "summary"}
)
_GROUPED = re.compile(r"\.?lora_(gate_and_up|gate_up|gate|up|down)_[AB]")  # NeMo AutoModel's own names
_ONE_EXPERT = re.compile(r"\.experts(\.\d+\.|\..*\.\d+$)")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class _Cause:
    """Why tensors have no place.

    Attributes:
        fact: The rest of the sentence that says how many tensors have no place.
        remedy: What to do; None for the catalogue's.
    """

    fact: str
    remedy: str | None = None


def refuse_unmatched(draft: Draft) -> None:
    """Refuse an adapter any tensor of which has no place in the base.

    Raises:
        PackagingError: ``adapter_mismatch``, with the remedy that belongs to the cause.
    """
    adapter, unmatched = draft.adapter, draft.unmatched
    if not unmatched:
        return
    cause = next(reason for find in _CAUSES if (reason := find(draft, unmatched)) is not None)
    names = [adapter.tensors[key].name for key in unmatched]
    raise PackagingError(
        ErrorCode.ADAPTER_MISMATCH,
        f"{len(names)} of {len(adapter.tensors)} tensors of {adapter.directory} have no place in "
        f"{draft.base.directory}, e.g. {names[0]}{cause.fact}",
        remedy=cause.remedy,
        fields={"unmatched": names[:20], "unmatched_count": len(names), "tensors": len(adapter.tensors)},
    )


def _beside(draft: Draft, keys: Sequence[AdapterKey]) -> _Cause | None:
    """A file beside the adapter holds something that is not in the base."""
    files = sorted({draft.adapter.tensors[key].file_name for key in keys if draft.adapter.is_beside(key)})
    if not files or not all(draft.adapter.is_beside(key) for key in keys):
        return None
    return _Cause(
        f" of {files[0]}, which lies beside the adapter",
        f"Give {files[0]} the base model's tensor names, or move it away if it is no part of what is packaged.",
    )


def _head(draft: Draft, keys: Sequence[AdapterKey]) -> _Cause | None:
    """The trained head of a classifier or reward model, on a base that is a language model."""
    heads = [key for key in keys if _last(key) in _OTHER_HEADS]
    if not heads or len(heads) < len(keys):
        return None
    task = draft.adapter.config.get("task_type")
    architecture = (draft.base.config.get("architectures") or ["its class"])[0]
    trained = draft.locator.tree.class_name if draft.locator.tree is not None else ""
    kept_nowhere = draft.classes and trained not in draft.classes and task == CLASSIFIES
    return _Cause(
        f": the adapter carries a trained head, {heads[0].module!r}{f' (task_type {task})' if task else ''}, which "
        f"{architecture} does not have" + (f"; {trained} is not among what is converted" if kept_nowhere else ""),
        "No GGUF file has a place for such a head. Train a language model without a head of its own, or an encoder."
        if kept_nowhere
        else "Load the base with the class that was trained (e.g. AutoModelForSequenceClassification), merge the "
        "adapter with PEFT and package the result with `quantize_base`; or train a language model without a head of "
        "its own.",
    )


def _grouped(draft: Draft, keys: Sequence[AdapterKey]) -> _Cause | None:
    """NeMo AutoModel's grouped experts, in its own names and axes."""
    if not any(_GROUPED.search(draft.adapter.tensors[key].name) for key in keys):
        return None
    return _Cause(
        ": they are NeMo AutoModel's own names for LoRA on grouped experts",
        "Save the adapter in PEFT's form, as NeMo AutoModel's checkpointer does for models with a state dict adapter.",
    )


def _prefix(draft: Draft, keys: Sequence[AdapterKey]) -> _Cause | None:
    """Names that the base has, behind components that it does not have."""
    for count in (1, 2, 3):
        dropped = {".".join(key.module.split(".")[:count]) for key in keys}
        if len(dropped) == 1 and all(_has(draft, ".".join(key.module.split(".")[count:])) for key in keys):
            prefix = dropped.pop()
            return _Cause(
                f": the base has these modules without the leading {prefix!r}",
                f"Take {prefix + '.'!r} off the adapter's tensor names, or use the base model that has {prefix!r}.",
            )
    return None


def _experts(draft: Draft, keys: Sequence[AdapterKey]) -> _Cause | None:
    """One adapter per expert, where the base has no such experts."""
    if not all(_ONE_EXPERT.search(key.module + ".") or _ONE_EXPERT.search(key.module) for key in keys):
        return None
    stored = next((name for name in draft.base.tensors if ".experts." in name), None)
    has = f"the base stores its experts as {stored}" if stored else "the base has no experts"
    return _Cause(
        f": the adapter has LoRA expert by expert, and {has}",
        "Merge the adapter with the trainer that wrote it and package the result with `quantize_base`."
        if stored
        else "Use the mixture-of-experts base that the adapter was trained on.",
    )


def _layers(draft: Draft, keys: Sequence[AdapterKey]) -> _Cause | None:
    """Layers past the base's last."""
    last = max(_layer_numbers(draft.base.tensors), default=None)
    numbers = [next(iter(_layer_numbers([f".{key.module}."])), -1) for key in keys]
    if last is None or min(numbers) <= last:
        return None
    return _Cause(f": the base has layers up to {last}, the adapter up to {max(numbers)}{_trained_on(draft)}")


def _other(draft: Draft, _keys: Sequence[AdapterKey]) -> _Cause:
    unknown = f"; transformers does not know {draft.base.model_type!r}" if draft.locator.tree is None else ""
    return _Cause(f"{_trained_on(draft)}{unknown}")


_CAUSES: Sequence[Callable[[Draft, Sequence[AdapterKey]], _Cause | None]] = (
    _beside, _head, _grouped, _prefix, _experts, _layers, _other,
)  # fmt: skip


def _last(key: AdapterKey) -> str:
    return key.module.rpartition(".")[2]


def _has(draft: Draft, module: str) -> bool:
    return bool(module) and bool(draft.locator.places(f"{module}.weight") or draft.locator.places(module))


def _layer_numbers(names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _LAYER.search(f".{name}"))}


def _trained_on(draft: Draft) -> str:
    name = draft.adapter.base_name
    return f" (adapter_config.json names {Path(name).name!r})" if name else ""


_ADDED = frozenset({"lora", "experts", "expert_linears", "peft"})
"""Kinds of steps that an adapter's own layers make, on top of the values that are there."""


def refuse_doubled(draft: Draft) -> None:
    """Refuse weights beside an adapter that the adapter changes as well: merged already, or trained beside it?

    Raises:
        PackagingError: ``adapter_unsupported``.
    """
    doubled = next((step.target for step in draft.steps if step.kind in _ADDED and step.target in draft.beside), None)
    if doubled is None:
        return
    entry = draft.adapter.tensors[draft.beside[doubled]]
    raise PackagingError(
        ErrorCode.ADAPTER_UNSUPPORTED,
        f"{entry.file_name} beside the adapter of {draft.adapter.directory} holds weights of {doubled}, which the "
        "adapter changes as well and which are not the base model's: the adapter may be merged into them already",
        remedy=f"Move {entry.file_name} away to merge the adapter into the base, or package it alone as full weights.",
        fields={"file": entry.file_name, "tensor": entry.name},
    )

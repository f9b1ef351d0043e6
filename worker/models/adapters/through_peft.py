"""Adapters that are merged by PEFT's own layers, module by module: other methods, and LoRA that altered its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.adapter import Adapter
from worker.models.adapters.config import refuse_unknown, token_indices
from worker.models.adapters.draft import Draft
from worker.models.adapters.keys import TOKENS_PART, clean_path
from worker.models.adapters.names import CONV1D_MODEL_TYPES, is_embedding, is_head
from worker.models.adapters.peft_update import LayerKind, PeftUpdate
from worker.models.adapters.places import Place
from worker.models.adapters.replacements import plan_replacement, plan_token_rows

if TYPE_CHECKING:
    import torch

# PEFT methods that merge one module at a time; each is compared with a whole-model merge in the tests. BOFT is not
# among them: where a CUDA toolkit is installed its layer compiles an extension when it is built.
MERGED_BY_PEFT = frozenset({
    "ADALORA", "BEFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3",
    "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA",
    "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
})  # fmt: skip
# methods with random projections as large as the largest adapted module, which may be saved or drawn again from a seed
_SIZED_BY_MODEL = frozenset({"VERA", "PVERA", "RANDLORA"})
# methods whose merged bias is made of the weight as well; an update has only one of the two before it
_BIAS_BY_WEIGHT = frozenset({"GLORA"})
# trained copies of a module inside the adapter's own container: LN tuning
_TRAINED_COPY = "ln_tuning_layers"
# config keys that say where the trainer's files were, or name a Python module to import
_PRIVATE = ("base_model_name_or_path", "revision", "auto_mapping", "task_type", "megatron_config", "megatron_core")


def plan_through_peft(draft: Draft) -> None:
    """Add one update per adapted tensor to the draft.

    Raises:
        PackagingError: ``adapter_unsupported``, ``adapter_not_finite``.
    """
    _refuse_unknown_settings(draft.adapter)
    config = {key: value for key, value in draft.adapter.config.items() if key not in _PRIVATE}
    states: dict[str, dict[str, torch.Tensor]] = {}
    shared: dict[str, torch.Tensor] = {}
    altered: set[str] = set()  # modules whose base weights came with the adapter, as the initialisation left them
    for key, entry in draft.adapter.tensors.items():
        path = [part for part in clean_path(entry.name) if part not in ("base_layer", _TRAINED_COPY)]
        if path[-1] in ("weight", "bias") and draft.locator.places(".".join(path)):
            plan_replacement(draft, ".".join(path), key)
            if key.depth and path[-1] == "weight":
                altered.add(".".join(path[:-1]))
            continue
        if TOKENS_PART in path:  # the method of that name: rows of the embedding, tied or not
            ids = token_indices(draft.adapter.config.get("token_indices"), str(draft.adapter.directory))
            plan_token_rows(draft, ids, ".".join(path[: path.index(TOKENS_PART)]), key)
            continue
        module = _owner(draft, path)
        if module is None and path[0] == "base_model":
            shared[".".join(path)] = draft.read(key)  # of the model as a whole, e.g. VeRA's projections
            continue
        if module is None:
            draft.miss(key)
            continue
        end = ".".join(path[len(module.split(".")) :]).replace(".default", "")
        states.setdefault(module, {})[end] = draft.read(key)
    for module, state in states.items():
        settings = config
        if module in altered and draft.adapter.peft_type == "LORA":
            settings = {**config, "init_lora_weights": True}  # not to be altered a second time
        _add_module(draft, module, {**state, **shared}, settings)
    if shared or draft.adapter.peft_type in _SIZED_BY_MODEL:
        _set_largest(draft)
    _try_first(draft)


def _refuse_unknown_settings(adapter: Adapter) -> None:
    """PEFT drops a setting that this release of it does not know, and merges as if it were not there."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[adapter.peft_type])}
    refuse_unknown(adapter.config, known, str(adapter.directory))


def _owner(draft: Draft, path: list[str]) -> str | None:
    """The longest beginning of a tensor's path that is a module of the base."""
    for length in range(len(path) - 1, 0, -1):
        module = ".".join(path[:length])
        if draft.locator.places(f"{module}.weight"):
            return module
    return None


def _add_module(draft: Draft, module: str, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    places = draft.locator.places(f"{module}.weight")
    shape = draft.current_shape(places[0])
    if len(places) != 1 or not places[0].whole or len(shape) != 2:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{draft.adapter.directory}: {draft.adapter.peft_type} on {module}, which is no plain layer in the files",
            remedy="Merge the adapter with PEFT first and package the result with `quantize_base`.",
            fields={"feature": draft.adapter.peft_type, "module": module},
        )
    biases = [place for place in draft.locator.places(f"{module}.bias") if place.whole]
    if biases and draft.adapter.peft_type in _BIAS_BY_WEIGHT:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{draft.adapter.directory}: {draft.adapter.peft_type} on {module}, whose bias it changes by its weight",
            remedy="Merge the adapter with PEFT first and package the result with `quantize_base`.",
            fields={"feature": draft.adapter.peft_type, "module": module},
        )
    layer = _layer_kind(draft, places[0])

    def update(part: Literal["weight", "bias"]) -> PeftUpdate:
        made = PeftUpdate(module, layer, part, shape, bool(biases), config, state, largest=shape)
        return replace(made, largest=made.size)

    draft.add(places[0], "peft", update("weight"))
    for place in biases:
        draft.add(place, "peft", update("bias"))


def _layer_kind(draft: Draft, place: Place) -> LayerKind:
    if is_embedding(place.source) and not is_head(place.target):
        return "embedding"
    if draft.base.model_type in CONV1D_MODEL_TYPES and not is_head(place.target):
        return "conv1d"
    return "linear"


def _try_first(draft: Draft) -> None:
    """Merge one module at once, so that what PEFT cannot do is known before any output is written."""
    first = next((step for step in draft.steps if isinstance(step.update, PeftUpdate)), None)
    if first is not None:
        first.update.apply(draft.base.read_tensor(first.source), "base")


def _set_largest(draft: Draft) -> None:
    """Tell every update the largest adapted module, which the projections that all share are cut from."""
    sizes = [step.update.size for step in draft.steps if isinstance(step.update, PeftUpdate)]
    largest = tuple(max(extents) for extents in zip(*sizes, strict=True))
    draft.steps = [
        replace(step, update=replace(step.update, largest=largest)) if isinstance(step.update, PeftUpdate) else step
        for step in draft.steps
    ]

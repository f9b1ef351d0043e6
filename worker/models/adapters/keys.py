"""Names of adapter tensors, freed of what trainers leave in them.

PEFT writes ``base_model.model.<module>.lora_A.weight``. Trainers add ``module.`` (DDP), ``_orig_mod.`` (torch.compile),
``_fsdp_wrapped_module.`` and ``_checkpoint_wrapped_module.``, and a state dict saved by hand keeps the adapter's name
(``lora_A.default.weight``). :func:`parse_key` takes all of that off.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

# modules that wrap another one without a name of their own; anywhere in a path
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# the parts of one adapted module, as named by PEFT's LoRA layers
LORA_PARTS = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"})
_TOKENS = "token_adapter"
_SAVED = ".modules_to_save."
TOKENS_PART = "trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """One adapter tensor's name, taken apart.

    Attributes:
        module: Path of the base model's module, e.g. ``model.layers.0.self_attn.q_proj``.
        part: ``lora_A``, ``lora_B``, ...; ``lora_B.bias``; ``trainable_tokens_delta``; or, for a tensor of the module
            itself that replaces the base's, its own name after a dot: ``.weight``, ``.bias``.
        depth: How many ``base_layer`` steps were in the path: which of several nested wrappers is meant.
        adapter_name: The name left in the key, empty where there was none.
    """

    module: str
    part: str
    depth: int = 0
    adapter_name: str = ""


def clean_path(key: str) -> list[str]:
    """A tensor name's components without trainers' wrappers and PEFT's prefix."""
    return _strip_prefixes([component for component in key.split(".") if component not in _WRAPPERS])


def parse_key(key: str) -> AdapterKey:
    """Take one tensor name of an adapter file apart; never fails, since any name may be that of a base tensor."""
    path = clean_path(key)
    for index, component in enumerate(path):
        if component in LORA_PARTS:
            return _lora_key(path[:index], component, path[index + 1 :])
        if component == _TOKENS and path[index + 1 : index + 2] == [TOKENS_PART]:
            return AdapterKey(".".join(path[:index]), TOKENS_PART, adapter_name=".".join(path[index + 2 :]))
        if component == "modules_to_save":
            name, inner = (path[index + 1], path[index + 2 :]) if len(path) > index + 2 else ("", path[index + 1 :])
            return AdapterKey(".".join(path[:index] + inner[:-1]), "." + "".join(inner[-1:]), adapter_name=name)
    module, depth = _strip_base_layer(path[:-1])
    return AdapterKey(module, "." + path[-1], depth)


def is_superseded(name: str, names: Container[str]) -> bool:
    """Whether a tensor says nothing of the trained model.

    With ``bias="all"`` PEFT saves a module of ``modules_to_save`` three times: the trained copy under the module's own
    name, which it reads again, the same copy under its inner name, and the frozen original.
    """
    return ".original_module." in name or (_SAVED in name and name.replace(_SAVED, ".") in names)


def _strip_prefixes(path: list[str]) -> list[str]:
    while path:
        if path[0] == "module":
            path = path[1:]
        elif path[:2] == ["base_model", "model"]:
            path = path[2:]
        else:
            break
    for index in range(1, len(path) - 1):
        if path[index : index + 2] == ["base_model", "model"]:  # the adapter was attached to a part of the model
            return path[:index] + path[index + 2 :]
    return path


def _strip_base_layer(path: list[str]) -> tuple[str, int]:
    kept = [component for component in path if component != "base_layer"]
    return ".".join(kept), len(path) - len(kept)


def _lora_key(path: list[str], part: str, rest: list[str]) -> AdapterKey:
    module, depth = _strip_base_layer(path)
    suffix = ""
    if rest and rest[-1] in ("weight", "bias"):
        suffix = rest[-1]
        rest = rest[:-1]
    return AdapterKey(module, f"{part}.bias" if suffix == "bias" else part, depth, ".".join(rest))

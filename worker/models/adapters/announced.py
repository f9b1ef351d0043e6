"""What ``adapter_config.json`` says was trained, and the adapter's files hold nothing of: told, since it may be lost.

PEFT gives such a module its untrained weights and warns. A name that the base has no module of says nothing: lists of
targets are written for many models at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from worker.models.adapters.adapter import Adapter
from worker.models.adapters.config import token_indices
from worker.models.adapters.keys import LORA_PARTS, TOKENS_PART

_EXPERTS = ".experts."  # PEFT adapts experts by a setting of their own, whatever a file calls them


def absent_parts(adapter: Adapter, base_tensors: Iterable[str]) -> tuple[str, ...]:
    """Sentences, one for each setting of which something is missing.

    Args:
        adapter: With what lies beside it.
        base_tensors: Names of the base model's tensors.
    """
    config, told = adapter.config, []
    of_base = {name.rpartition(".")[0] for name in base_tensors if _EXPERTS not in name}
    adapted = {key.module for key in adapter.tensors if key.part.partition(".")[0] in LORA_PARTS}
    whole = {key.module for key in adapter.tensors if key.part.startswith(".")}
    for setting, held in (("target_modules", adapted | whole), ("modules_to_save", whole)):
        names = [name for name in _listed(config, setting) if _any_ends(of_base, name) and not _any_ends(held, name)]
        if names:
            told.append(_sentence(adapter, setting, names))
    rows = token_indices(config.get("trainable_token_indices"), str(adapter.directory))
    if rows and not any(key.part == TOKENS_PART for key in adapter.tensors):
        told.append(_sentence(adapter, "trainable_token_indices", ["rows of the embedding"]))
    return tuple(told)


def _listed(config: Mapping[str, Any], setting: str) -> list[str]:
    """The names of a list; a pattern, and what is no list, names nothing by itself."""
    value = config.get(setting)
    if str(config.get("peft_type", "LORA")).upper() != "LORA" or not isinstance(value, list):
        return []
    return [name for name in value if isinstance(name, str)]


def _any_ends(modules: Iterable[str], name: str) -> bool:
    return any(module == name or module.endswith(f".{name}") or f".{name}." in f".{module}." for module in modules)


def _sentence(adapter: Adapter, setting: str, names: list[str]) -> str:
    return (
        f"{setting} of adapter_config.json names {', '.join(names)}, and {adapter.directory.name} has no tensor of it: "
        "if that was trained, its training is not in the files"
    )

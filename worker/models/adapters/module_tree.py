"""What transformers makes of a base model: the parameters that an adapter was attached to, and where they lie in files.

transformers 5 renames tensors while it loads them and fuses some: the experts of a mixture become one
three-dimensional parameter, a projection stored in one piece becomes three. Adapters name the parameters, files hold
the tensors. This module asks transformers itself for the way from one to the other, on a model without data (meta
device). It runs no code of the model directory: only classes that transformers ships are built, with the locks of
``worker.models.hardening`` on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from worker.foreign import attend_eagerly, finite_config
from worker.models.adapters.places import Place
from worker.models.checkpoint.base_model import BaseModel
from worker.models.hardening import locked_down

CLASSIFIES, _EMBEDS = "SEQ_CLS", "FEATURE_EXTRACTION"
"""PEFT's task types of classifiers, rerankers and reward models, and of encoders without a head."""
_MAX_MODULES = 4096
_COUNTED = ("layer", "depth", "expert")  # parts of config keys that count modules


class ParameterKind(StrEnum):
    """What kind of module owns a parameter; PEFT picks its layer by it."""

    LINEAR = "linear"
    CONV1D = "conv1d"
    EMBEDDING = "embedding"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model in memory.

    Attributes:
        shape: Its shape.
        kind: Kind of the owning module.
        experts_transposed: A fused parameter stored (e, i, o) instead of (e, o, i).
        gate_then_up: A fused ``gate_up_proj`` holds the gate's rows first, then up's; else they take turns.
        family: transformers' package that the owning module comes from, e.g. ``qwen3_moe``.
    """

    shape: tuple[int, ...]
    kind: ParameterKind
    experts_transposed: bool
    family: str = ""
    gate_then_up: bool = False


@dataclass(frozen=True)
class ModuleTree:
    """The parameters of a base model as transformers loads it.

    Attributes:
        parameters: Name -> parameter, in order of registration (PEFT nests its wrappers in this order).
        places: Parameter name -> the tensors it is made of; empty where the way is one that is not followed here.
        parameter_of: Base tensor -> name of the parameter that it becomes, or becomes part of.
        class_name: transformers' class.
    """

    parameters: Mapping[str, Parameter]
    places: Mapping[str, Sequence[Place]]
    parameter_of: Mapping[str, str]
    class_name: str
    _rename: Callable[[str], str] = field(repr=False)

    def rename(self, name: str) -> str:
        """A tensor name of an older release as the name of today's parameter."""
        return self._rename(name)

    def kind_of(self, tensor: str) -> ParameterKind | None:
        """Kind of the module that a base tensor ends up in."""
        parameter = self.parameters.get(self.parameter_of.get(tensor, ""))
        return None if parameter is None else parameter.kind


def read_module_tree(base: BaseModel, task_type: str = "") -> ModuleTree | None:
    """Ask transformers about ``base``; None where it does not know the model type or cannot build the model.

    Args:
        base: The base model.
        task_type: PEFT's, which says to what class of model the adapter was attached: a classifier, or an encoder
            without a head; any other is attached to the class that config.json names.
    """
    try:
        with locked_down():
            model = _build(base, task_type)
        return None if model is None else _describe(model, base)
    except Exception:
        # Whatever a strange config makes transformers raise, the answer is the same: it does not know this model. The
        # caller then goes by names alone and refuses what it cannot place.
        return None


def _build(base: BaseModel, task_type: str) -> Any:
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if base.model_type not in CONFIG_MAPPING or _too_deep(base.config):
        return None
    config_class = CONFIG_MAPPING[base.model_type]
    config = config_class.from_dict(finite_config(config_class, base.config))
    attend_eagerly(config)
    architectures = base.config.get("architectures") or [""]
    by_task = {
        CLASSIFIES: transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        _EMBEDS: transformers.MODEL_MAPPING,
    }.get(task_type, {})
    model_class = getattr(transformers, str(architectures[0]), None)
    if type(config) in by_task:
        model_class = by_task[type(config)]
    elif not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        return model_class(config)


def _too_deep(config: Mapping[str, Any]) -> bool:
    """Whether the config asks for so many modules that building them would be an attack."""
    for key, value in config.items():
        if isinstance(value, dict) and _too_deep(value):
            return True
        if isinstance(value, int) and value > _MAX_MODULES and any(word in key for word in _COUNTED):
            return True
    return False


def _describe(model: Any, base: BaseModel) -> ModuleTree:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    known = model.state_dict()
    prefix = model.base_model_prefix

    def locate(name: str) -> tuple[str, str | None]:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in known and name in known:
            renamed, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=known)
        return renamed, pattern

    collected: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(base.tensors, key=dot_natural_key):
        renamed, pattern = locate(name)
        if renamed in known:
            collected.setdefault(renamed, []).append((name, pattern))
    parameters = _parameters(model)
    places: dict[str, Sequence[Place]] = {}
    parameter_of: dict[str, str] = {}
    for renamed, sources in collected.items():
        parameter_of.update((name, renamed) for name, _ in sources)
        pattern = sources[0][1]
        if pattern is None:
            places[renamed] = [Place(sources[-1][0], sources[-1][0])]
        else:
            places.update(_converted(renamed, sources, by_pattern[pattern], parameters, base))
    return ModuleTree(parameters, places, parameter_of, type(model).__name__, lambda name: locate(name)[0])


def _parameters(model: Any) -> dict[str, Parameter]:
    import torch
    from transformers.pytorch_utils import Conv1D

    parameters: dict[str, Parameter] = {}
    for path, module in model.named_modules():
        kind = ParameterKind.OTHER
        if isinstance(module, torch.nn.Linear):
            kind = ParameterKind.LINEAR
        elif isinstance(module, Conv1D):
            kind = ParameterKind.CONV1D
        elif isinstance(module, torch.nn.Embedding):
            kind = ParameterKind.EMBEDDING
        transposed = bool(getattr(module, "is_transposed", False))
        family = type(module).__module__.split(".")[2:3] or [""]
        concatenated = bool(getattr(module, "is_concatenated", False))
        for name, value in module.named_parameters(recurse=False):
            shape = tuple(value.shape)
            parameters[f"{path}.{name}".lstrip(".")] = Parameter(shape, kind, transposed, family[0], concatenated)
    return parameters


def _converted(
    first: str,
    sources: Sequence[tuple[str, str | None]],
    converter: Any,
    parameters: Mapping[str, Parameter],
    base: BaseModel,
) -> dict[str, Sequence[Place]]:
    """Places of the parameters that one converter makes; nothing for a way that is not followed here."""
    operations = [type(operation).__name__ for operation in converter.operations]
    dims = [getattr(operation, "dim", None) for operation in converter.operations]
    by_pattern: dict[str | None, list[str]] = {pattern: [] for pattern in converter.source_patterns}
    for name, pattern in sources:
        by_pattern[pattern].append(name)
    groups = [names for names in by_pattern.values() if names]
    if operations == ["MergeModulelist"] and dims == [0]:
        return {first: _experts(groups, base)}
    if operations == ["MergeModulelist", "Concatenate"] and dims == [0, 1]:
        return {first: _experts(groups, base)}
    if operations == ["Concatenate"] and dims[0] in (0, 1):
        return {first: _concatenated([name for names in groups for name in names], base, dims[0])}
    if operations == ["Transpose"] and len(sources) == 1 and len(base.tensors[sources[0][0]].shape) == 3:
        name = sources[0][0]
        return {first: [Place(name, name, swapped=base.tensors[name].shape != parameters[first].shape)]}
    if operations in (["Chunk"], ["Split"]) and dims == [0] and len(sources) == 1:
        names = [first.replace(converter.target_patterns[0], target) for target in converter.target_patterns]
        return _chunked(names, sources[0][0], parameters)
    return {}


def _experts(groups: Sequence[Sequence[str]], base: BaseModel) -> list[Place]:
    """Per-expert tensors stacked along a new first axis, groups (gate, up) one below the other."""
    places = []
    for index in range(len(groups[0])):
        start = 0
        for names in groups:
            stop = start + base.tensors[names[index]].shape[0]
            rows = (start, stop) if len(groups) > 1 else None
            places.append(Place(names[index], names[index], expert=index, rows=rows))
            start = stop
    return places


def _concatenated(names: Sequence[str], base: BaseModel, dim: int) -> list[Place]:
    """Tensors one below the other; ``dim`` 1 for stacks of experts, whose rows are their second axis."""
    if len({len(base.tensors[name].shape) for name in names}) != 1 or len(base.tensors[names[0]].shape) != dim + 2:
        return []
    places, start = [], 0
    for name in names:
        stop = start + base.tensors[name].shape[dim]
        places.append(Place(name, name, rows=(start, stop)))
        start = stop
    return places


def _chunked(names: Sequence[str], source: str, parameters: Mapping[str, Parameter]) -> dict[str, Sequence[Place]]:
    """One tensor whose rows are several parameters, one after the other."""
    places: dict[str, Sequence[Place]] = {}
    start = 0
    for name in names:
        if name not in parameters:
            return {}
        stop = start + parameters[name].shape[0]
        places[name] = [Place(source, source, region=(start, stop))]
        start = stop
    return places

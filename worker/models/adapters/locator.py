"""Where the parameter that an adapter changes lies in the base model's files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from worker.models.adapters.module_tree import ModuleTree, Parameter, read_module_tree
from worker.models.adapters.names import TensorNames, canonical, head_name, is_head
from worker.models.adapters.places import Place
from worker.models.checkpoint.base_model import BaseModel

_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")


class Locator:
    """Finds the places of adapted parameters: by name where names agree, else by what transformers does on loading."""

    def __init__(self, base: BaseModel, head_source: str | None, task_type: str = "") -> None:
        """Prepare.

        Args:
            base: The base model.
            head_source: The embedding that is the head as well where the base has no head tensor, else None.
            task_type: PEFT's, as for :func:`~worker.models.adapters.module_tree.read_module_tree`.
        """
        self._base = base
        self._names = TensorNames(base.tensors)
        self._head_source = head_source
        self._task_type = task_type

    @cached_property
    def tree(self) -> ModuleTree | None:
        """What transformers makes of the base; asked once, when names alone do not answer."""
        return read_module_tree(self._base, self._task_type)

    def places(self, name: str) -> Sequence[Place]:
        """The tensors that hold the parameter an adapter calls ``name``; empty where the base has none such."""
        base_name = self._names.find(name)
        if base_name is not None:
            return [Place(base_name, base_name)]
        if self._head_source is not None and is_head(name):
            return [Place(head_name(self._head_source), self._head_source)]
        parameter = self.parameter_name(name)
        return [] if parameter is None or self.tree is None else self.tree.places.get(parameter, [])

    def parameter_name(self, name: str) -> str | None:
        """Today's name of the parameter that an adapter calls ``name``; None where transformers knows none such."""
        if self.tree is None:
            return None
        if name in self.tree.parameters:
            return name
        if _ONE_EXPERT.search(name):
            return None  # today's name would be that of the whole stack of experts
        renamed = self.tree.rename(name)
        if renamed in self.tree.parameters:
            return renamed
        return self._parameter_names.find(name)

    @cached_property
    def has_experts(self) -> bool:
        """Whether the base is a mixture of experts, some modules of which may be no linear layers."""
        return any(".experts." in name for name in self._base.tensors)

    def parameter(self, name: str) -> Parameter | None:
        """The parameter that an adapter calls ``name``."""
        name_in_base = self.parameter_name(name)
        return None if name_in_base is None or self.tree is None else self.tree.parameters[name_in_base]

    @cached_property
    def registered(self) -> dict[str, list[str]]:
        """Module path without prefixes -> names of the parameters it owns, in order of registration."""
        owned: dict[str, list[str]] = defaultdict(list)
        for name in self.tree.parameters if self.tree is not None else ():
            owner, _, leaf = name.rpartition(".")
            owned[canonical(owner)].append(leaf)
        return owned

    @cached_property
    def _parameter_names(self) -> TensorNames:
        return TensorNames(self.tree.parameters if self.tree is not None else ())

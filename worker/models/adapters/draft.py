"""The plan of an overlay while it is being made: steps so far, what found no place, and the checks all parts share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.adapter import Adapter
from worker.models.adapters.keys import AdapterKey
from worker.models.adapters.locator import Locator
from worker.models.adapters.names import is_embedding, is_head
from worker.models.adapters.overlay import Step
from worker.models.adapters.places import Place
from worker.models.adapters.updates import Update
from worker.models.checkpoint.base_model import BaseModel

if TYPE_CHECKING:
    import torch

    from worker.models.adapters.expert_linears import OneExpert

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass
class Draft:
    """What reading an adapter gives.

    Attributes:
        adapter: The adapter.
        base: The base model.
        locator: Finds base tensors.
        steps: In the order in which they apply to each target.
        unmatched: Adapter tensors without a place in the base.
        notes: Sentences for the user.
        classes: Architectures that the converter takes, one of which a trained head may make of the merged model.
        config_changes: What the merged model's config says otherwise, beside vocabulary and tying.
        beside: Target -> the tensor beside the adapter whose values it has.
        one_experts: Experts trained one by one, by tensor, rank, orientation and rows, until all are known.
    """

    adapter: Adapter
    base: BaseModel
    locator: Locator
    steps: list[Step] = field(default_factory=list)
    unmatched: list[AdapterKey] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    classes: Collection[str] = ()
    config_changes: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, AdapterKey] = field(default_factory=dict)
    one_experts: dict[tuple[Place, int, bool, tuple[int, int] | None], list[OneExpert]] = field(default_factory=dict)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def shape(self, key: AdapterKey) -> tuple[int, ...]:
        """Shape of an adapter tensor."""
        return self.adapter.tensors[key].shape

    def read(self, key: AdapterKey) -> torch.Tensor:
        """An adapter tensor in its stored dtype.

        Raises:
            PackagingError: ``adapter_not_finite``.
        """
        return self.adapter.check_finite(key)

    def add(self, place: Place, kind: str, update: Update) -> None:
        """Append a step.

        Raises:
            PackagingError: ``base_model_quantized`` where the base tensor is no plain floating-point one.
        """
        entry = self.base.tensors[place.source]
        if entry.dtype not in _FLOATS:
            raise PackagingError(
                ErrorCode.BASE_MODEL_QUANTIZED,
                f"{place.source} of {self.base.directory} is stored as {entry.dtype}; nothing can be merged into it",
                fields={"tensor": place.source, "dtype": entry.dtype},
            )
        step = Step(place.target, place.source, update, kind, place.region)
        before = self._shapes.get(place.target, entry.shape)
        self._shapes[place.target] = step.shape_after(before)
        self.steps.append(step)

    def miss(self, *keys: AdapterKey) -> None:
        """Note adapter tensors that have no place in the base."""
        self.unmatched.extend(keys)

    def current_shape(self, place: Place) -> tuple[int, ...]:
        """Shape of the tensor at ``place`` after the steps so far; of its region where it has one."""
        shape = self._shapes.get(place.target, self.base.tensors[place.source].shape)
        if place.region is not None:
            shape = (place.region[1] - place.region[0], *shape[1:])
        return shape

    def is_vocabulary(self, place: Place) -> bool:
        """Whether rows of the tensor are tokens, so that an adapter may bring another number of them."""
        return is_embedding(place.source) or is_head(place.target)

    def refuse_shape(self, key: AdapterKey, have: tuple[int, ...], place: Place) -> NoReturn:
        """Say that an adapter tensor does not fit.

        Raises:
            PackagingError: ``adapter_mismatch``.
        """
        name, want = self.adapter.tensors[key].name, self.current_shape(place)
        raise PackagingError(
            ErrorCode.ADAPTER_MISMATCH,
            f"{self.adapter.directory}: {name} is for a weight of {list(have)}, but {place.source} of the base model "
            f"is {list(want)}",
            fields={"tensor": name, "base_tensor": place.source, "shape": list(have), "base_shape": list(want)},
        )

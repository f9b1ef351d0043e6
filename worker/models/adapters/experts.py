"""LoRA attached to parameters (``target_parameters``): fused experts of a mixture, routers.

PEFT wraps the module that owns the parameters once per parameter, in their order of registration, so the innermost
wrapper (most ``base_layer`` in the key) is the first one. For a stack of ``e`` experts the factors are two-dimensional:
A is (e * r, i), expert by expert; B is (o, r * e), where the expert is the *inner* index. What other versions and
trainers wrote instead is in ``writer``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.config import LoraSettings
from worker.models.adapters.draft import Draft
from worker.models.adapters.keys import AdapterKey
from worker.models.adapters.low_rank import ExpertsUpdate, LoraUpdate
from worker.models.adapters.names import canonical
from worker.models.adapters.places import Place
from worker.models.adapters.writer import ColumnOrder

if TYPE_CHECKING:
    import torch

    from worker.models.adapters.module_tree import Parameter


def targeted_parameter(draft: Draft, settings: LoraSettings, path: str, depth: int) -> str | None:
    """The parameter that a wrapper of ``path`` adapts, None where a whole module is adapted.

    Raises:
        PackagingError: ``adapter_unsupported`` where several parameters are possible and transformers does not know the
            model, so that their order is unknown.
    """
    if not settings.target_parameters:
        return None
    names = _registered(draft, path)
    targeted = [
        name
        for name in names
        if any(name == target or name.endswith(f".{target}") for target in settings.target_parameters)
    ]
    if not targeted:
        return None
    if len(targeted) > 1 and draft.locator.tree is None:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{draft.adapter.directory}: which of {', '.join(targeted)} a tensor of {path} is for cannot be told, "
            f"since transformers does not know the model type {draft.base.model_type!r}",
            remedy="Merge the adapter with PEFT first and package the result with `quantize_base`.",
            fields={"feature": "target_parameters", "module": path},
        )
    index = len(targeted) - 1 - depth
    if index < 0:
        message = f"{draft.adapter.directory}: {path} has more wrappers than target_parameters"
        raise PackagingError(ErrorCode.ADAPTER_INVALID, message)
    return targeted[index]


def _registered(draft: Draft, path: str) -> list[str]:
    """Parameters of the module at ``path``, in order of registration, by the adapter's own path."""
    if draft.locator.tree is None:
        return sorted(name for name in draft.base.tensors if name.rpartition(".")[0] == path)
    return [f"{path}.{leaf}" for leaf in draft.locator.registered.get(canonical(path), ())]


def plan_parameter(draft: Draft, settings: LoraSettings, name: str, key_a: AdapterKey, key_b: AdapterKey) -> None:
    """LoRA on the parameter ``name``, two- or three-dimensional.

    Raises:
        PackagingError: ``adapter_mismatch``, ``adapter_not_finite``.
    """
    places = draft.locator.places(name)
    parameter = draft.locator.parameter(name)
    if not places:
        draft.miss(key_a, key_b)
        return
    shape = parameter.shape if parameter is not None else draft.base.tensors[places[0].source].shape
    a, b = draft.read(key_a), draft.read(key_b)
    experts = shape[0] if len(shape) == 3 else 1
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] % experts or len(shape) not in (2, 3):
        draft.refuse_shape(key_b, tuple(b.shape), places[0])
    rank = a.shape[0] // experts
    product = (b.shape[0], a.shape[1])
    fits, flipped_fits = shape[-2:] == product, shape[-2:] == (product[1], product[0])
    if not (fits or flipped_fits):
        draft.refuse_shape(key_b, product, places[0])
    transposed = not fits
    if fits and flipped_fits and len(shape) == 3:  # a square expert: only who wrote it can say
        transposed = _square_is_transposed(draft, name, parameter, places)
    if len(shape) == 3:
        b = _rank_major(draft, name, parameter, b, experts)
    scaling = settings.scaling_of(name, rank)
    for place in places:
        if len(shape) == 3:
            update = ExpertsUpdate(a, b, experts, scaling, transposed, place.expert, place.rows, place.swapped)
            draft.add(place, "experts", update)
        else:
            draft.add(place, "lora", LoraUpdate(a, b, scaling, "rounded", transposed, rows=place.rows))


def _square_is_transposed(draft: Draft, name: str, parameter: Parameter | None, places: Sequence[Place]) -> bool:
    """Whether the product of square experts is (i, o), by who wrote the adapter.

    Raises:
        PackagingError: ``adapter_unsupported`` where nothing says so.
    """
    writer = draft.adapter.writer
    in_out = parameter is not None and parameter.experts_transposed
    answer = writer.reads_first_axis(in_out) if parameter is not None or writer.peft is not None else None
    if any(place.swapped for place in places) and writer.peft is not None and writer.peft < (0, 19, 1):
        answer = None  # transformers 4 held these experts as the files do, and PEFT went by the model in memory
    if answer is None:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{draft.adapter.directory}: the experts of {name} are square, so the adapter's factors fit in two ways: "
            "B @ A is what is added to an expert (PEFT since 0.19.1), or its transpose is (PEFT up to 0.18); nothing "
            "in the adapter says which of the two wrote it",
            remedy="Write the `peft_version` that trained it into adapter_config.json, or merge it with that PEFT.",
            fields={"feature": "peft_version", "parameter": name},
        )
    return answer


def _rank_major(draft: Draft, name: str, parameter: Parameter | None, b: torch.Tensor, experts: int) -> torch.Tensor:
    """B with the expert as the inner index of its columns, whichever way its writer ordered them."""
    family = parameter.family if parameter is not None else draft.base.model_type
    where = str(draft.adapter.directory)
    order, said = draft.adapter.writer.column_order(name.rpartition(".")[2], family, where)
    if order is ColumnOrder.RANK_MAJOR:
        return b
    if not said:
        note = f"B of fused experts is read expert by expert, as Unsloth before 2026.9.6 trained {family}"
        if (note := f"{note}; adapter_config.json has no lora_B_layout to say so") not in draft.notes:
            draft.notes.append(note)
    return b.view(b.shape[0], experts, -1).transpose(1, 2).reshape(b.shape)

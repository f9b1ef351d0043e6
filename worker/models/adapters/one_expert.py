"""Adapters with one LoRA per expert on a base whose experts are one tensor.

Unsloth trains 4-bit gpt-oss with a linear layer per expert (``experts.gate_up_projs.3``, unslothai/unsloth-zoo#885);
transformers 4 and Megatron exporters list experts (``experts.3.gate_proj``). Such a layer is a slice of the stack, or
half of one where gate and up lie one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.config import LoraSettings
from worker.models.adapters.draft import Draft
from worker.models.adapters.expert_linears import ExpertLinearsUpdate, OneExpert
from worker.models.adapters.keys import AdapterKey
from worker.models.adapters.places import Place

if TYPE_CHECKING:
    pass

_LEAVES = "gate_up_proj|down_proj|gate_proj|up_proj|w1|w2|w3"
_BY_INDEX = re.compile(rf"(?P<experts>.*\.experts)\.(?P<index>\d{{1,6}})\.(?P<leaf>{_LEAVES})")
_BY_LEAF = re.compile(rf"(?P<experts>.*\.experts)\.(?P<leaf>{_LEAVES})s\.(?P<index>\d{{1,6}})")
_TODAY = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_HALVES = {"gate_proj": 0, "up_proj": 1}


@dataclass(frozen=True, slots=True)
class Slice:
    """What one expert's linear layer is of the base's tensors.

    Attributes:
        place: The tensor, a stack of experts.
        expert: Index in it.
        half: 0 or 1 for gate or up of a tensor that holds both; None for the whole slice.
        in_out: The tensor is (e, i, o) where its shape does not say; None where nothing says so.
    """

    place: Place
    expert: int
    half: int | None
    in_out: bool | None


def plan_one_expert(
    draft: Draft,
    settings: LoraSettings,
    path: str,
    pair: tuple[AdapterKey, AdapterKey],
    parts: Mapping[str, AdapterKey],
) -> bool:
    """Note the LoRA of one expert's linear layer where the base has it as a slice.

    Returns:
        Whether ``path`` is such a layer.

    Raises:
        PackagingError: ``adapter_mismatch`` for shapes, ``adapter_unsupported`` for DoRA and biases, and for a square
            expert of which nothing says how it lies.
    """
    slot = _find(draft, path)
    if slot is None:
        return False
    extra = next((part for part in ("lora_magnitude_vector", "lora_B.bias") if part in parts), None)
    if extra is not None:
        raise _unsupported(draft, path, f"{extra} on one expert of a stack")
    a, b = draft.read(pair[0]), draft.read(pair[1])
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        draft.refuse_shape(pair[1], tuple(b.shape), slot.place)
    count, *held = draft.current_shape(slot.place)
    product = (b.shape[0], a.shape[1])
    half = 1 if slot.half is None else 2
    ways = [
        transposed
        for transposed in (False, True)
        if tuple(held) == ((product[1], half * product[0]) if transposed else (half * product[0], product[1]))
    ]
    if not ways or slot.expert >= count:
        draft.refuse_shape(pair[1], product, slot.place)
    if len(ways) == 2 and slot.in_out is None:
        raise _unsupported(draft, path, "a square expert of a model that transformers does not know: (in, out) or not")
    transposed = ways[0] if len(ways) == 1 else bool(slot.in_out)
    rows = None if slot.half is None else (slot.half * product[0], (slot.half + 1) * product[0])
    scaling = settings.scaling_of(path, a.shape[0])
    gathered = draft.one_experts.setdefault((slot.place, a.shape[0], transposed, rows), [])
    gathered.append(OneExpert(slot.expert, a, b, scaling))
    return True


def add_one_experts(draft: Draft) -> None:
    """One step for all experts of a tensor that were trained with the same rank."""
    import torch

    for (place, _, transposed, rows), experts in draft.one_experts.items():
        update = ExpertLinearsUpdate(
            torch.stack([expert.a for expert in experts]),
            torch.stack([expert.b for expert in experts]),
            tuple(expert.expert for expert in experts),
            tuple(expert.scaling for expert in experts),
            transposed,
            rows,
        )
        draft.add(place, "expert_linears", update)


def _find(draft: Draft, path: str) -> Slice | None:
    named = _BY_INDEX.fullmatch(path) or _BY_LEAF.fullmatch(path)
    if named is None:
        return None
    leaf = _TODAY.get(named["leaf"], named["leaf"])
    for half, parameter in ((None, leaf), (_HALVES.get(leaf), "gate_up_proj")):
        name = f"{named['experts']}.{parameter}"
        places = draft.locator.places(name)
        if len(places) != 1 or len(draft.base.tensors[places[0].source].shape) != 3 or places[0].region is not None:
            continue
        known = draft.locator.parameter(name)
        if parameter != leaf and (half is None or known is None or not known.gate_then_up):
            continue  # gpt-oss has gate and up in turns
        in_out = None if known is None else known.experts_transposed != places[0].swapped
        return Slice(Place(places[0].target, places[0].source), int(named["index"]), half, in_out)
    return None


def _unsupported(draft: Draft, path: str, what: str) -> PackagingError:
    return PackagingError(
        ErrorCode.ADAPTER_UNSUPPORTED,
        f"{draft.adapter.directory}: {path} has {what}, which cannot be merged into the base's stack of experts",
        remedy="Merge the adapter with the trainer that wrote it and package the result with `quantize_base`.",
        fields={"feature": "LoRA on one expert", "module": path},
    )

"""LoRA attached to parameters (``target_parameters``): fused experts of a mixture, routers.

PEFT wraps the module that owns the parameters once per parameter, in their order of registration, so the innermost
wrapper (most ``base_layer`` in the key) is the first one. For a stack of ``e`` experts the factors are two-dimensional:
A is (e * r, i), expert by expert; B is (o, r * e), where the expert is the *inner* index.
"""

from __future__ import annotations

from api_client.errors import ErrorCode, PackagingError
from worker.adapters.config import LoraSettings
from worker.adapters.draft import Draft
from worker.adapters.keys import AdapterKey
from worker.adapters.low_rank import ExpertsUpdate, LoraUpdate
from worker.adapters.names import canonical


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
    # only a square expert leaves the choice to what transformers says
    prefer_transposed = parameter is not None and parameter.experts_transposed
    transposed = flipped_fits and (prefer_transposed or not fits)
    scaling = settings.scaling_of(name, rank)
    for place in places:
        if len(shape) == 3:
            update = ExpertsUpdate(a, b, experts, scaling, transposed, place.expert, place.rows, place.swapped)
            draft.add(place, "experts", update)
        else:
            draft.add(place, "lora", LoraUpdate(a, b, scaling, "rounded", transposed, rows=place.rows))

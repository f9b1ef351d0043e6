"""A LoRA adapter as steps: every tensor of it assigned to base tensors, shapes checked, nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.adapter import Adapter
from worker.models.adapters.config import LoraSettings
from worker.models.adapters.draft import Draft
from worker.models.adapters.experts import plan_parameter, targeted_parameter
from worker.models.adapters.keys import TOKENS_PART, AdapterKey
from worker.models.adapters.low_rank import LoraStyle, LoraUpdate
from worker.models.adapters.names import CONV1D_MODEL_TYPES, is_head
from worker.models.adapters.one_expert import add_one_experts, plan_one_expert
from worker.models.adapters.places import Place
from worker.models.adapters.replacements import plan_replacement, plan_token_rows
from worker.models.adapters.updates import BiasUpdate, TruncateUpdate
from worker.setting import Report, WorkProgress, no_report

if TYPE_CHECKING:
    import torch

_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
Parts = Mapping[str, AdapterKey]


def plan_lora(draft: Draft, settings: LoraSettings, report: Report = no_report) -> None:
    """Read every tensor of a LoRA adapter once and add its steps to the draft.

    Args:
        draft: Receives steps, and what found no place.
        settings: The adapter's settings.
        report: Is told modules done and in all.

    Raises:
        PackagingError: ``adapter_mismatch`` for shapes, ``adapter_not_finite``, ``adapter_invalid``,
            ``adapter_unsupported``.
    """
    modules = _modules(draft.adapter)
    for done, ((path, depth), parts) in enumerate(modules.items(), start=1):
        _plan_module(draft, settings, path, depth, parts)
        report(WorkProgress(done, len(modules)))
    add_one_experts(draft)


def _modules(adapter: Adapter) -> dict[tuple[str, int], dict[str, AdapterKey]]:
    """Adapter tensors by module and nesting of wrappers, then by part."""
    grouped: dict[tuple[str, int], dict[str, AdapterKey]] = {}
    for key in adapter.tensors:
        # a tensor of the module itself, such as a saved embedding, is the module's however deep it was wrapped
        depth = 0 if key.part.startswith(".") else key.depth
        grouped.setdefault((key.module, depth), {})[key.part] = key
    return grouped


def _plan_module(draft: Draft, settings: LoraSettings, path: str, depth: int, parts: Parts) -> None:
    left = set(parts)
    for part, key in parts.items():
        if part.startswith("."):
            plan_replacement(draft, (path + part).lstrip("."), key)
            left.remove(part)
        elif part == TOKENS_PART:
            plan_token_rows(draft, settings.trainable_token_indices, path, key)
            left.remove(part)
    for name_a, name_b in _PAIRS:
        if (name_a in parts) != (name_b in parts):
            present = name_a if name_a in parts else name_b
            message = f"{draft.adapter.directory}: {path} has {present} without its partner"
            raise PackagingError(ErrorCode.ADAPTER_INVALID, message)
        if name_a not in parts:
            continue
        left -= {name_a, name_b}
        parameter = targeted_parameter(draft, settings, path, depth) if name_a == "lora_A" else None
        if parameter is not None:
            plan_parameter(draft, settings, parameter, parts[name_a], parts[name_b])
        else:
            _plan_low_rank(draft, settings, path, (parts[name_a], parts[name_b]), parts)
            left -= {"lora_magnitude_vector", f"{name_b}.bias"}
    if left:
        _refuse_left_over(draft, parts[min(left)])


def _refuse_left_over(draft: Draft, key: AdapterKey) -> NoReturn:
    """A part that no layer of PEFT's has, or one without the factors that it belongs to."""
    raise PackagingError(
        ErrorCode.ADAPTER_UNSUPPORTED,
        f"{draft.adapter.directory}: it is not known here what {draft.adapter.tensors[key].name} does",
        remedy="Merge the adapter with PEFT first and package the result with `quantize_base`.",
        fields={"feature": key.part, "tensor": draft.adapter.tensors[key].name},
    )


def _plan_low_rank(
    draft: Draft, settings: LoraSettings, path: str, pair: tuple[AdapterKey, AdapterKey], parts: Parts
) -> None:
    key_a, key_b = pair
    places = draft.locator.places(f"{path}.weight")
    if not places and not plan_one_expert(draft, settings, path, pair, parts):
        draft.miss(key_a, key_b)
    if not places:
        return
    _check_factors(draft, path, key_a, key_b)
    a, b = draft.read(key_a), draft.read(key_b)
    magnitude = _magnitude(draft, settings, path, parts, b.shape[0])
    scaling = settings.scaling_of(path, a.shape[0])
    for place in places:
        if place.expert is not None or place.swapped:
            draft.refuse_shape(key_b, (b.shape[0], a.shape[1]), place)
        style = _style(draft, settings, place, key_a)
        out = b.shape[0] if place.rows is None else place.rows[1] - place.rows[0]
        transposed = _orientation(draft, key_b, (out, a.shape[1]), place, style)
        draft.add(place, "lora", LoraUpdate(a, b, scaling, style, transposed, magnitude, place.rows))
    if "lora_B.bias" in parts:
        _plan_lora_bias(draft, path, parts["lora_B.bias"], scaling)


def _check_factors(draft: Draft, path: str, key_a: AdapterKey, key_b: AdapterKey) -> None:
    a, b = draft.shape(key_a), draft.shape(key_b)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{draft.adapter.directory}: {path} has LoRA factors of shapes {list(a)} and {list(b)}",
            remedy="Only linear layers, embeddings and experts can be merged; merge others with PEFT first.",
            fields={"feature": "LoRA on a convolution", "module": path},
        )


def _style(draft: Draft, settings: LoraSettings, place: Place, key_a: AdapterKey) -> LoraStyle:
    """Which of PEFT's layers merges this weight. In mixtures, experts and routers are no linear layers."""
    if key_a.part == "lora_embedding_A":
        return "embedding"
    if settings.init_lora_weights == "mica":
        return "rounded"
    if draft.locator.has_experts and draft.locator.tree is not None:
        kind = draft.locator.tree.kind_of(place.source)
        return "rounded" if kind == "other" else "linear"
    return "linear"


def _orientation(draft: Draft, key: AdapterKey, product: tuple[int, int], place: Place, style: LoraStyle) -> bool:
    """Whether the weight is (i, o). Checks the shapes, and cuts a padded vocabulary to the adapter's rows."""
    want = draft.current_shape(place)
    flipped = (product[1], product[0])
    delta = flipped if style == "embedding" else product
    if want == delta:
        square = delta[0] == delta[1] and not is_head(place.target)
        return style == "linear" and square and draft.base.model_type in CONV1D_MODEL_TYPES
    if style == "linear" and want == flipped:
        return True
    if not (draft.is_vocabulary(place) and want[1:] == delta[1:] and delta[0] < want[0]):
        draft.refuse_shape(key, delta, place)
    draft.notes.append(f"{place.target}: cut from {want[0]} to the adapter's {delta[0]} rows")
    draft.add(place, "truncate", TruncateUpdate(delta[0]))
    return False


def _magnitude(draft: Draft, settings: LoraSettings, path: str, parts: Parts, size: int) -> torch.Tensor | None:
    key = parts.get("lora_magnitude_vector")
    if key is None:
        if settings.use_dora:
            message = f"{draft.adapter.directory}: use_dora is set, but {path} has no magnitude vector"
            raise PackagingError(ErrorCode.ADAPTER_INVALID, message)
        return None
    magnitude = draft.read(key).reshape(-1)
    if magnitude.numel() != size:
        message = f"{draft.adapter.tensors[key].name} has {magnitude.numel()} values, expected {size}"
        raise PackagingError(ErrorCode.ADAPTER_INVALID, f"{draft.adapter.directory}: {message}")
    return magnitude


def _plan_lora_bias(draft: Draft, path: str, key: AdapterKey, scaling: float) -> None:
    places = draft.locator.places(f"{path}.bias")
    if not places:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{draft.adapter.directory}: lora_bias on {path}, which has no bias in the base",
            remedy="Train without lora_bias; PEFT cannot merge this either.",
            fields={"feature": "lora_bias", "module": path},
        )
    value = draft.read(key)
    for place in places:
        part = place.part_of(value)
        if tuple(part.shape) != draft.current_shape(place):
            draft.refuse_shape(key, tuple(part.shape), place)
        draft.add(place, "bias", BiasUpdate(part, scaling))

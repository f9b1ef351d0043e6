"""A LoRA adapter as pairs that llama.cpp can add at run time.

llama.cpp applies ``alpha / rank of the tensor`` with one alpha for the whole file. Here alpha is the adapter's
``lora_alpha`` and every other factor (rsLoRA, alpha_pattern, rank_pattern) is folded into B in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.adapter import Adapter
from worker.models.adapters.build import read_draft
from worker.models.adapters.config import lora_settings
from worker.models.adapters.expert_linears import ExpertLinearsUpdate
from worker.models.adapters.low_rank import ExpertsUpdate, LoraUpdate
from worker.models.adapters.overlay import Step
from worker.models.adapters.tying import Tying
from worker.models.checkpoint.base_model import BaseModel

if TYPE_CHECKING:
    import torch

_REMEDY = "Merge the adapter instead (template `merge_quantize` or `merge`)."
_INEXPRESSIBLE = {
    "replace": "modules_to_save or trained biases (whole tensors)",
    "rows": "trained token rows",
    "bias": "lora_bias",
    "truncate": "a vocabulary of another size",
}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One adapted base tensor: ``W + alpha / r * (B @ A)``, expert by expert where W is a stack of them.

    Attributes:
        name: Base tensor name.
        a: (r, i) float32; (e, r, i) for a stack of experts.
        b: (o, r) float32, all scaling beyond ``alpha / r`` folded in; (e, o, r) for a stack of experts. The ``o`` of an
            embedding is its tokens.
        r: Rank.
        alpha: The one alpha of the adapter.
        transposed: The base tensor stores its matrices (i, o).
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor
    r: int
    alpha: float
    transposed: bool


def invocation_tokens(adapter: Adapter) -> tuple[int, ...]:
    """Token ids after which an activated LoRA (aLoRA) applies; empty for any other adapter.

    Raises:
        PackagingError: ``adapter_invalid``, ``adapter_unsupported``.
    """
    if adapter.peft_type != "LORA":
        return ()
    return lora_settings(adapter.config, str(adapter.directory)).invocation_tokens


def normalise_for_export(adapter: Adapter, base: BaseModel) -> list[LoraPair]:
    """The adapter as plain pairs, in file order.

    Raises:
        PackagingError: ``adapter_unsupported`` naming what a LoRA file cannot express, and whatever ``build_overlay``
            raises.
    """
    draft, _, tying = read_draft(adapter, base)
    alpha = lora_settings(adapter.config, str(adapter.directory)).lora_alpha if adapter.peft_type == "LORA" else 0.0
    if alpha <= 0:
        alpha = 1.0  # llama.cpp takes 0 for "no alpha", that is a scale of 1
    pairs: list[LoraPair] = []
    for step in draft.steps:
        feature = _inexpressible(step, adapter, tying)
        if feature is not None:
            raise PackagingError(
                ErrorCode.ADAPTER_UNSUPPORTED,
                f"{adapter.directory}: a LoRA file cannot hold {feature} ({step.target})",
                remedy=_REMEDY,
                fields={"feature": feature, "tensor": step.target},
            )
        if isinstance(step.update, ExpertLinearsUpdate):
            _add_linears(pairs, step.source, step.update, base.tensors[step.source].shape, alpha)
            continue
        assert isinstance(step.update, LoraUpdate | ExpertsUpdate), "anything else is inexpressible"
        pairs.append(_pair(step.source, step.update, alpha))
    return pairs


def _add_linears(
    pairs: list[LoraPair], name: str, update: ExpertLinearsUpdate, shape: tuple[int, ...], alpha: float
) -> None:
    """Add experts trained one by one; those of a tensor that has a pair already are joined to it along the rank."""
    import torch

    a, b = update.of_all(shape[0], shape[2] if update.transposed else shape[1], alpha)
    before = next((pair for pair in pairs if pair.name == name), None)
    rank = a.shape[1]
    if before is not None:
        pairs.remove(before)
        total = rank + before.r
        # what each is worth is alpha / rank of the tensor, so a larger rank takes a larger B
        b = torch.cat([before.b * (total / before.r), b * (total / rank)], dim=-1)
        a, rank = torch.cat([before.a, a], dim=-2), total
    pairs.append(LoraPair(name, a, b, rank, alpha, update.transposed))


def _inexpressible(step: Step, adapter: Adapter, tying: Tying | None) -> str | None:
    """What about a step a LoRA file has no place for; None where there is nothing."""
    if step.kind == "peft":
        init = adapter.config.get("init_lora_weights")
        return adapter.peft_type if adapter.peft_type != "LORA" else f"LoRA that altered its base (init {init})"
    if isinstance(step.update, LoraUpdate) and step.update.magnitude is not None:
        return "DoRA (use_dora)"
    if step.region is not None:
        return "LoRA on a part of a tensor that the base model stores fused"
    if tying is not None and step.target in (tying.embedding, tying.head) and step.kind == "lora":
        return "LoRA on one half of tied embeddings"
    return _INEXPRESSIBLE.get(step.kind)


def _pair(name: str, update: LoraUpdate | ExpertsUpdate, alpha: float) -> LoraPair:
    a, b = update.a.float(), update.b.float()
    transposed = update.transposed
    if isinstance(update, ExpertsUpdate):
        a = a.view(update.experts, -1, a.shape[1])
        b = b.view(b.shape[0], -1, update.experts).permute(2, 0, 1)
        transposed ^= update.swapped
        if update.expert is not None:
            a, b = a[update.expert], b[update.expert]
    elif update.style == "embedding":
        a, b = b.T, a.T  # (B @ A).T is what is added to the (tokens, i) weight
    if update.rows is not None:
        rows = slice(*update.rows)
        if isinstance(update, ExpertsUpdate) and update.transposed:
            a = a[..., rows]
        else:
            b = b[..., rows, :]
    rank = a.shape[-2]
    factor = update.scaling * rank / alpha
    return LoraPair(name, a, b if factor == 1 else b * factor, rank, alpha, transposed)

"""What a job does with the prediction layers (MTP, NextN) of its model: ``draft_head`` of the request.

Decided once, in ``prepare``, and handed over as what is done: ``keep`` (the weights as they are), ``graft`` or
``drop``. How many the file has is known when its conversion is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint import BaseModel, open_base_model
from worker.models.convert.draft_head import (
    has_whole_head,
    lacks_announced,
    with_draft_head_of,
    without_draft_head,
)
from worker.models.convert.nextn import announced_layers, prediction_tensors
from worker.models.convert.upstream import load_upstream
from worker.stages.context import StageContext

Deed = Literal["keep", "graft", "drop"]
"""What is done with them."""

_NO_OTHER = "no other model is named that has them"
_NO_PLACE = "the converter has no place for the prediction layers"


@dataclass(frozen=True)
class DraftHead:
    """What becomes of the prediction layers.

    Attributes:
        model: The model to convert, with them or without.
        does: What was done to have it.
        donor: The base model whose layers they are, where they are grafted.
        concerned: Whether any were there to keep, graft or drop, or were announced.
        reason: Why the file has none where nobody asked for that.
    """

    model: BaseModel
    does: Deed
    donor: BaseModel | None = None
    concerned: bool = False
    reason: str = ""


def settle_draft_head(
    context: StageContext, model: BaseModel, architecture: str, open_donor: Callable[[], BaseModel] | None
) -> DraftHead:
    """Decide, from headers.

    Args:
        context: The stage's.
        model: The model to convert.
        architecture: Its class, by ``config.json``.
        open_donor: Opens the model that it was trained from, its weights plain; None where the model is that one.

    Raises:
        PackagingError: ``draft_head_invalid`` where they are not as asked for; what ``open_donor`` raises where they
            are to be grafted.
    """
    asked = context.request.draft_head
    if not context.options.export_gguf:
        return DraftHead(model, "keep")
    there = prediction_tensors(model.text_config, model.tensors)
    announced = announced_layers(model.text_config)
    if asked == "drop":
        return DraftHead(without_draft_head(model), "drop", concerned=bool(there or announced))
    if there and not _has_place(context, architecture):
        if asked != "auto":
            raise _no_place(architecture)
        return DraftHead(without_draft_head(model), "drop", concerned=True, reason=_NO_PLACE)
    if has_whole_head(model):
        return DraftHead(model, "keep", concerned=True)
    return (_by_itself if asked == "auto" else _as_asked)(context, model, architecture, open_donor)


def _as_asked(
    context: StageContext, model: BaseModel, architecture: str, open_donor: Callable[[], BaseModel] | None
) -> DraftHead:
    if context.request.draft_head == "keep":
        if lacks_announced(model):
            raise _incomplete(model, "draft_head is `keep`")
        return DraftHead(model, "keep")
    if open_donor is None:
        raise _incomplete(model, _NO_OTHER)
    grafted = _grafted(context, model, open_donor())
    if not _has_place(context, architecture):
        raise _no_place(architecture)
    return grafted


def _by_itself(
    context: StageContext, model: BaseModel, architecture: str, open_donor: Callable[[], BaseModel] | None
) -> DraftHead:
    """Grafted where the base has them; else as the weights are, which the conversion refuses where half is there."""
    wanted = lacks_announced(model)
    if open_donor is None:
        return DraftHead(model, "keep", concerned=wanted, reason=_NO_OTHER)
    try:
        donor = open_donor()
        if not wanted and not has_whole_head(donor):
            return DraftHead(model, "keep")
        grafted = _grafted(context, model, donor)
    except PackagingError as error:
        told = wanted or error.code is ErrorCode.DRAFT_HEAD_INVALID
        return DraftHead(model, "keep", concerned=told, reason=error.message)
    return (
        grafted if _has_place(context, architecture) else DraftHead(model, "keep", concerned=wanted, reason=_NO_PLACE)
    )


def _grafted(context: StageContext, model: BaseModel, donor: BaseModel) -> DraftHead:
    if model.quant_method is not None:  # left for the converter to read; layers beside it are plain
        model = open_base_model(model.directory, allowed_roots=context.settings.allowed_roots)
    return DraftHead(with_draft_head_of(model, donor), "graft", donor, concerned=True)


def _has_place(context: StageContext, architecture: str) -> bool:
    upstream = load_upstream(context.settings.llama_cpp_dir)
    return upstream.has_place_for_prediction_layers(upstream.model_class(architecture))


def report_draft_head(context: StageContext, head: DraftHead, layers: int) -> dict[str, Any]:
    """Say what became of them.

    Args:
        context: The stage's.
        head: As it was settled.
        layers: How many are in the file as it was planned.

    Returns:
        Facts for the manifest, ``draft_head``; empty for a model that has none and announces none.
    """
    if not (head.concerned or layers):
        return {}
    log = context.report.log
    if not layers:
        if context.request.draft_head == "drop":
            log("Prediction layers (MTP, NextN) are left out, as draft_head says")
        else:
            log(f"Prediction layers (MTP, NextN) are left out: {head.reason}", level="warning")
        return {"draft_head": {"did": "dropped", "layers": 0}}
    if head.donor is None:
        log(f"{layers} prediction layers (MTP, NextN) are kept")
        return {"draft_head": {"did": "kept", "layers": layers}}
    name = head.donor.directory.name
    log(f"{layers} prediction layers (MTP, NextN) are taken from the base model {name}")
    return {"draft_head": {"did": "grafted", "layers": layers, "from": name}}


def beyond_matrix(context: StageContext, model: BaseModel, quant_types: Sequence[str]) -> DraftHead:
    """What to do where quant types need a matrix of prediction layers, and one is computed: by itself, leave them out.

    Raises:
        PackagingError: ``imatrix_required`` where they are asked for, before a matrix is computed for nothing.
    """
    listed = ", ".join(quant_types)
    fact = f"{listed} cannot be made of them without a matrix, and computing one runs the model without them"
    if context.request.draft_head != "auto":
        raise PackagingError(
            ErrorCode.IMATRIX_REQUIRED,
            f"prediction layers (MTP, NextN): {fact}",
            remedy="Give a matrix that has them, choose another quant type, or set draft_head to `drop`.",
            fields={"field": "draft_head", "quant_types": list(quant_types)},
        )
    return DraftHead(without_draft_head(model), "drop", concerned=True, reason=fact)


def _incomplete(model: BaseModel, why: str) -> PackagingError:
    announced = announced_layers(model.text_config)
    said = " and ".join(f"{count} ({key})" for key, count in announced.items()) or "none"
    return PackagingError(
        ErrorCode.DRAFT_HEAD_INVALID,
        f"the weights of {model.directory.name} lack prediction layers (config.json announces {said}), and {why}",
        fields={"field": "draft_head", "announced": announced},
    )


def _no_place(architecture: str) -> PackagingError:
    return PackagingError(
        ErrorCode.DRAFT_HEAD_INVALID,
        f"{_NO_PLACE} of {architecture}",
        remedy="Set draft_head to `drop`, or leave it at `auto`.",
        fields={"field": "draft_head", "architecture": architecture},
    )

"""Build an overlay: read the adapter, assign every tensor of it to the base, settle tying, write the file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.adapter import Adapter
from worker.models.adapters.config import lora_settings, refuse_activated
from worker.models.adapters.draft import Draft
from worker.models.adapters.heads import plan_head
from worker.models.adapters.locator import Locator
from worker.models.adapters.lora import plan_lora
from worker.models.adapters.misfits import refuse_doubled, refuse_unmatched
from worker.models.adapters.overlay import OverlaySummary, write_overlay
from worker.models.adapters.through_peft import MERGED_BY_PEFT, plan_through_peft
from worker.models.adapters.tying import Tying, read_tying, settle_tying
from worker.models.adapters.updates import Precision
from worker.models.adapters.vocabulary import settle_vocabulary
from worker.models.checkpoint.base_model import BaseModel
from worker.setting import Report, no_report


def build_overlay(
    adapter: Adapter,
    base: BaseModel,
    out_path: Path,
    *,
    precision: Precision,
    report: Report = no_report,
    classes: Collection[str] = (),
) -> OverlaySummary:
    """Write the overlay that turns ``base`` into the merged model.

    Args:
        adapter: The adapter.
        base: The base model; its weights must not be quantized.
        out_path: File to write; appears complete or not at all.
        precision: ``base`` to round as PEFT's merge does, ``f32`` to leave float32 sums (``gguf_dtype`` f32 or f16).
        report: Is told modules done and in all.
        classes: Architectures that the converter takes; a head that the base lacks is added to make one of them.

    Raises:
        PackagingError: ``adapter_mismatch``, ``adapter_not_finite``, ``adapter_unsupported``, ``adapter_invalid``,
            ``base_model_quantized``.
    """
    if base.quant_method is not None:
        raise PackagingError(
            ErrorCode.BASE_MODEL_QUANTIZED,
            f"{base.directory} holds weights quantized with {base.quant_method}; an adapter cannot be merged into them",
            fields={"quant_method": base.quant_method},
        )
    if adapter.peft_type == "LORA":
        refuse_activated(lora_settings(adapter.config, str(adapter.directory)), str(adapter.directory))
    draft, one_adapter_for_both, tying = read_draft(adapter, base, report, classes)
    steps, changes, notes = settle_tying(draft.steps, base, tying, one_adapter_for_both)
    steps, vocabulary, cuts = settle_vocabulary(steps, base)
    return write_overlay(
        out_path,
        steps,
        base,
        precision=precision,
        config_changes={**changes, **vocabulary, **draft.config_changes},
        notes=[*draft.notes, *notes, *cuts],
    )


def read_draft(
    adapter: Adapter, base: BaseModel, report: Report = no_report, classes: Collection[str] = ()
) -> tuple[Draft, bool, Tying | None]:
    """Every adapter tensor assigned; whether one adapter serves both embedding and head; how the base is tied.

    Raises:
        PackagingError: As :func:`build_overlay`.
    """
    tying = read_tying(base)
    head_source = tying.embedding if tying is not None and not tying.stored else None
    task_type = str(adapter.config.get("task_type") or "")
    draft = Draft(adapter, base, Locator(base, head_source, task_type), classes=classes)
    one_adapter_for_both = False
    if adapter.peft_type == "LORA":
        settings = lora_settings(adapter.config, str(adapter.directory))
        one_adapter_for_both = settings.ensure_weight_tying
        if settings.through_peft:
            plan_through_peft(draft)
        else:
            plan_lora(draft, settings, report)
    elif adapter.peft_type in MERGED_BY_PEFT:
        plan_through_peft(draft)
    else:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{adapter.directory} is a {adapter.peft_type} adapter, which cannot be merged module by module",
            remedy="Merge it with PEFT first and package the result with `quantize_base`.",
            fields={"feature": adapter.peft_type},
        )
    draft.config_changes.update(plan_head(draft))
    refuse_unmatched(draft)
    refuse_doubled(draft)
    return draft, one_adapter_for_both, tying

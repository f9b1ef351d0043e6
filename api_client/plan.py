"""The plan: which stages a job needs, in order. Pure and decided once, on submit."""

from __future__ import annotations

from api_client.job import StageName
from api_client.request import PackagingRequest
from api_client.rules import ResolvedOptions, needs_imatrix_stage


def plan_stages(request: PackagingRequest, options: ResolvedOptions) -> tuple[StageName, ...]:
    """Ordered stages for a resolved request."""
    wanted = {
        StageName.PREPARE: True,
        StageName.MERGE: options.merge_lora,
        StageName.CONVERT: options.export_gguf,
        StageName.IMATRIX: needs_imatrix_stage(request, options),
        StageName.QUANTIZE: options.quantize,
        StageName.EXPORT_LORA: options.export_lora,
        StageName.VERIFY: True,
        StageName.PUBLISH: True,
    }
    return tuple(stage for stage in StageName if wanted[stage])

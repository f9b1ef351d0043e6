"""The plan: which stages a job needs, in order. Pure and decided once, on submit."""

from __future__ import annotations

from api_client.contract.request import PackagingRequest
from api_client.contract.rules import ResolvedOptions
from api_client.contract.stages import StageName


def plan_stages(request: PackagingRequest, options: ResolvedOptions) -> tuple[StageName, ...]:
    """Ordered stages for a resolved request."""
    return tuple(stage for stage in StageName if stage.spec.planned(request, options))

"""Handing over: what a stage gets of those before it, and what it may give. The supervisor and tests both use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from worker.stages.context import StageResult


def handed_over(stage: StageName, done: Mapping[StageName, StageResult]) -> dict[StageName, StageResult]:
    """Results of the stages that are done, each with those of its files that the stage's row reads."""
    takes = stage.spec.takes
    return {
        name: replace(result, artifacts=tuple(artifact for artifact in result.artifacts if takes(artifact)))
        for name, result in done.items()
    }


def checked_result(stage: StageName, result: StageResult) -> StageResult:
    """The same result, once it is known to be what the stage's row allows. What it lacks is missed by whoever reads it.

    Raises:
        PackagingError: ``internal_error`` naming the stage and a kind of file that its row does not make.
    """
    for artifact in result.artifacts:
        if artifact.kind not in stage.spec.makes | stage.spec.may_make:
            raise PackagingError(
                ErrorCode.INTERNAL_ERROR,
                f"{stage.value} made {artifact.kind.value}, which its row does not say",
                fields={"stage": stage.value, "kind": artifact.kind.value},
            )
    return result

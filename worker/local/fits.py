"""What the commands on kept files do with fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api_client.contract.fit import FitType
from api_client.contract.request import PackagingRequest
from worker.models.fit.decide import FitDecision
from worker.models.fit.local import LocalFitResult, LocalFits, decide_local
from worker.models.fit.solve import FitProblem
from worker.models.mixture.recipe import Recipe
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.local import LocalResult
from worker.setting import WorkSetting
from worker.storage.atomic import atomic_write_text


def decide_kept(
    source: Path,
    fits: Sequence[FitType],
    request: PackagingRequest,
    *,
    model: Path | None,
    imatrix: ImatrixData | None,
    setting: WorkSetting,
) -> LocalFitResult:
    """Decide fits of a kept file as the request's options have it.

    Raises:
        PackagingError: as :func:`worker.models.fit.local.decide_local`.
        StopRequested: as asked.
    """
    given = request.fit.sensitivity
    by = LocalFits(
        sensitivity=Path(given).expanduser().absolute() if given is not None else None,
        model=model.expanduser().absolute() if model is not None else None,
        imatrix=imatrix,
        options=request.fit,
        recipe=Recipe.of(request.recipe),
    )
    return decide_local(source.expanduser().absolute(), fits, by, setting=setting)


def write_recipes(decided: LocalFitResult, result: LocalResult) -> None:
    """Write the recipe of every fit whose file was made, beside it."""
    for fit, (_, decision) in decided.fits.items():
        if fit in result.files:
            whole = result.result.outcomes[fit].path
            atomic_write_text(whole.with_name(f"{whole.stem}.recipe.txt"), decision.mixture.recipe_text)


def decision_document(fit: FitType, problem: FitProblem, decision: FitDecision) -> dict[str, Any]:
    """What is told of a fit, as JSON values."""
    mixture, chosen = decision.mixture, decision.chosen
    counts: dict[str, int] = {}
    for _, kind in mixture.lines:
        counts[kind] = counts.get(kind, 0) + 1
    return {
        "fit": fit.value,
        "origin": mixture.origin,
        "beside": problem.beside.value,
        "file_type": mixture.file_type.value,
        "size_bytes": mixture.size_bytes,
        "predicted_kld": mixture.kld,
        "measured_kld": chosen.divergence.mean_kld.model_dump() if chosen is not None else None,
        "mixture_counts": counts,
        "recipe": [f"{name}={kind}" for name, kind in mixture.lines],
    }

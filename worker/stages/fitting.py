"""The fits of a job: priced once, decided one after the other, each decision kept in scratch.

What is found goes to the quantize stage, which makes the files of fits in the same pass as all others. Raises
``fit_impossible``, ``sensitivity_invalid``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.contract.errors import PackagingError
from api_client.contract.fit import AnyQuantType, FitType
from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.quality import Divergence
from api_client.contract.quant_types import QuantType
from worker.models.evaluate.texts import chosen_text
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.fit.curve import priced_curve
from worker.models.fit.decide import FitDecision, decide, predicted_best
from worker.models.fit.prices import Prices
from worker.models.fit.pricing import price_tensors
from worker.models.fit.select import FitSubject, Measured
from worker.models.fit.solve import FitProblem, price_types
from worker.models.fit.space import space_of
from worker.models.fit.text import last_tokens
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.load import load_imatrix
from worker.models.mixture.recipe import Recipe
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.sensitivity.gguf_form import read_sensitivity
from worker.models.sizes import machine_memory_bytes
from worker.stages.context import StageContext
from worker.stages.inputs import job_base, job_overlay, job_tokenizer
from worker.stages.measurable import CANNOT_RUN, CannotRunError, running_model
from worker.storage.atomic import atomic_write_text

_PRICES = "prices.json"
_DECISIONS = "fits.json"


@dataclass(frozen=True)
class JobFit:
    """A fit of the job, decided.

    Attributes:
        fit: What was asked for.
        problem: What it came to.
        decision: The mixture, and what was measured.
    """

    fit: FitType
    problem: FitProblem
    decision: FitDecision

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        mixture, chosen, limit = self.decision.mixture, self.decision.chosen, self.problem.limit
        priced = {tensor.name for tensor in self.problem.prices.tensors}
        free = {tensor.name for tensor in self.problem.market.prices.tensors}
        reasons = {
            "chosen": [name for name, _ in mixture.lines if name in free],
            "kept by the recipe": [name for name, _ in mixture.lines if name in priced - free],
            "stock, for want of a sensitivity": [name for name, _ in mixture.lines if name not in priced],
        }
        return {
            "origin": mixture.origin,
            "file_type": mixture.file_type.value,
            "size_bytes": mixture.size_bytes,
            "limit_bytes": limit.size_bytes if limit.padded else None,
            "limit_kld": limit.kld,
            "beside": self.problem.beside.value,
            "predicted_kld": mixture.kld,
            "measured": None if chosen is None else chosen.divergence.model_dump(mode="json"),
            "candidates": [
                {
                    "name": candidate.name,
                    "predicted_kld": candidate.predicted,
                    "kld": candidate.divergence.mean_kld.model_dump(),
                }
                for candidate in self.decision.measured
            ],
            "tensors": {reason: len(names) for reason, names in reasons.items() if names},
            "not_chosen": {reason: names for reason, names in reasons.items() if names and reason != "chosen"},
        }


def decide_fits(context: StageContext, source: Artifact, fits: Sequence[FitType]) -> Mapping[FitType, JobFit]:
    """Decide every fit for the model in ``source``.

    Raises:
        PackagingError: ``fit_impossible``, ``sensitivity_invalid``.
    """
    if not fits:
        return {}
    matrix = context.matrix()
    (sensitivity,) = context.artifacts(ArtifactKind.SENSITIVITY)
    data = load_imatrix(Path(matrix.path)) if matrix is not None else None
    space = space_of(Path(source.path), data, context.request.fit.allowed, Recipe.of(context.request.recipe))
    limits = {fit: space.limit_of(fit, context.request.fit.context, machine_memory_bytes()) for fit in fits}
    bare = [FitProblem(space, Prices(()), fit, limit) for fit, limit in limits.items()]
    prices = _priced(context, source, sensitivity, data, price_types(space, bare))
    record = _Decisions(context.scratch / _DECISIONS, prices, source, context)
    subject: list[FitSubject | None] = []  # made when the first decision needs it
    job_fits = {}
    for fit, limit in limits.items():
        context.stop_point()
        problem = FitProblem(space, prices, fit, limit)
        decision = record.decision(problem)
        if decision is None:
            if not subject:
                subject.append(_subject(context, source, data, space.elements))
            decision = _decided(context, problem, subject[0])
            record.keep(fit, decision)
        job_fits[fit] = JobFit(fit, problem, decision)
        _tell(context, job_fits[fit])
    return job_fits


def curve_of(context: StageContext, fits: Mapping[FitType, JobFit]) -> dict[str, Any]:
    """Size against predicted KLD for the model of these fits, by the prices that they were decided by, as JSON."""
    problem = next(iter(fits.values())).problem
    return priced_curve(problem.space, problem.prices, context.request.fit.context).model_dump(mode="json")


def write_recipe(path: Path, job_fit: JobFit) -> Artifact:
    """The recipe file of a fit."""
    atomic_write_text(path, job_fit.decision.mixture.recipe_text)
    return Artifact.of(path, ArtifactKind.RECIPE, quant_type=job_fit.fit.value)


def same_files(wanted: Iterable[AnyQuantType], fits: Mapping[FitType, JobFit]) -> dict[FitType, AnyQuantType]:
    """Fits whose file has the bytes of another's, with that other one.

    Args:
        wanted: What is made in one pass.
        fits: The decisions.
    """
    first: dict[tuple[QuantType, frozenset[tuple[str, GGMLType]]], AnyQuantType] = {}
    same: dict[FitType, AnyQuantType] = {}
    types = sorted(
        wanted, key=lambda quant: isinstance(quant, FitType)
    )  # a file of a name of its own before its copies
    for quant in types:
        if isinstance(quant, FitType):
            mixture = fits[quant].decision.mixture
            key = (mixture.file_type, frozenset(mixture.types.items()))
            if key in first:
                same[quant] = first[key]
        elif fits:
            space = next(iter(fits.values())).problem.space
            key = (quant, frozenset(space.types_of(quant).items()))
        else:
            continue
        first.setdefault(key, quant)
    return same


def _priced(
    context: StageContext,
    source: Artifact,
    sensitivity: Artifact,
    matrix: ImatrixData | None,
    types: Sequence[GGMLType],
) -> Prices:
    """The price list; kept in scratch, and taken over where it is of the same files and types."""
    path = context.scratch / _PRICES
    names = [kind.name for kind in types]
    key = _digest([source.sha256, sensitivity.sha256, matrix.sha256 if matrix else None, names])
    try:
        first, _, text = path.read_text("utf-8").partition("\n")
        if first == key:
            return Prices.from_json(text)
    except (OSError, ValueError):
        pass  # made anew
    prices = price_tensors(
        Path(source.path),
        read_sensitivity(Path(sensitivity.path)),
        types,
        matrix,
        setting=context.setting("weights"),
    )
    atomic_write_text(path, f"{key}\n{prices.to_json()}")
    context.report.log(f"{len(prices.tensors)} tensors priced in {len(types)} types")
    return prices


def _subject(context: StageContext, source: Artifact, matrix: ImatrixData | None, weights: int) -> FitSubject | None:
    """What candidates are measured with; None, with the reason in the log, where the model cannot be run here.

    Args:
        context: The stage's.
        source: Unquantized file.
        matrix: What files are made with.
        weights: Number of the model's weights.
    """
    prepared = context.prepared
    try:
        base = job_base(context)
        tokenizer = load_tokenizer(job_tokenizer(context), base.config)
        text = chosen_text(tokenizer, prepared.evaluation.text, prepared.evaluation.dataset)
    except PackagingError as error:
        if error.code not in CANNOT_RUN:
            raise
        _say_unmeasured(context, error.message)
        return None
    taken = last_tokens(text.sequences, weights)
    return FitSubject(base, job_overlay(context), Path(source.path), matrix, taken)


def _decided(context: StageContext, problem: FitProblem, subject: FitSubject | None) -> FitDecision:
    """By measurement; by prediction alone where the model cannot be run here."""
    if subject is None:
        return predicted_best(problem)
    try:
        with running_model():
            return decide(problem, subject, setting=context.setting("tokens"))
    except CannotRunError as error:
        _say_unmeasured(context, str(error))
        return predicted_best(problem)


def _say_unmeasured(context: StageContext, reason: str) -> None:
    context.report.log(f"Fits are chosen by prediction alone, as the model cannot be run: {reason}", level="warning")


def _tell(context: StageContext, job_fit: JobFit) -> None:
    mixture, chosen = job_fit.decision.mixture, job_fit.decision.chosen
    measured = f", measured {chosen.kld:.5f}" if chosen is not None else ""
    what = (
        "a mixture of its own" if mixture.origin == "fit" else f"the stock mixture of {mixture.origin}; none was better"
    )
    context.report.log(
        f"{job_fit.fit}: {what}, {mixture.size_bytes} bytes, mean KLD predicted {mixture.kld:.5f}{measured}",
        quant_type=job_fit.fit.value,
        candidates=[{"name": candidate.name, "kld": candidate.kld} for candidate in job_fit.decision.measured],
    )


class _Decisions:
    """Decisions that an earlier attempt took, by fit; of other prices they count for nothing."""

    def __init__(self, path: Path, prices: Prices, source: Artifact, context: StageContext) -> None:
        request = context.request
        self._path = path
        self._key = _digest(
            [
                prices.to_json(),
                source.sha256,
                request.fit.model_dump(mode="json"),
                request.recipe.model_dump(mode="json"),
            ]
        )
        self._kept: dict[str, Any] = {}
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["key"] == self._key:
                self._kept = dict(content["fits"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # decided anew

    def decision(self, problem: FitProblem) -> FitDecision | None:
        """What was decided; None where nothing was."""
        try:
            kept = self._kept[problem.fit]
            types = {name: GGMLType[kind] for name, kind in kept["types"].items()}
            if types.keys() != {tensor.name for tensor in problem.space.tensors}:
                return None
            measured = tuple(map(_measured, kept["measured"]))
            return FitDecision(problem.mixture(types, kept["origin"]), measured)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def keep(self, fit: FitType, decision: FitDecision) -> None:
        """Write a decision down."""
        self._kept[fit.value] = {
            "origin": decision.mixture.origin,
            "types": {name: kind.name for name, kind in decision.mixture.types.items()},
            "measured": [
                {
                    "name": candidate.name,
                    "types": dict(candidate.types),
                    "predicted": candidate.predicted,
                    "divergence": candidate.divergence.model_dump(mode="json"),
                }
                for candidate in decision.measured
            ],
        }
        atomic_write_text(self._path, json.dumps({"key": self._key, "fits": self._kept}))


def _measured(row: Mapping[str, Any]) -> Measured:
    return Measured(row["name"], dict(row["types"]), row["predicted"], Divergence.model_validate(row["divergence"]))


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

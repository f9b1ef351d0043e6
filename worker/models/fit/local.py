"""Fits of a GGUF file that somebody kept, on this machine, without a job: for ``quantize`` and ``recipe``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import FitOptions, FitType
from config.roots import Roots
from worker.models.checkpoint import open_base_model
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.evaluate.texts import shipped_text
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.fit.decide import FitDecision, decide, predicted_best
from worker.models.fit.prices import Prices
from worker.models.fit.pricing import price_tensors
from worker.models.fit.select import FitSubject
from worker.models.fit.solve import FitProblem, price_types
from worker.models.fit.space import FitSpace, space_of
from worker.models.fit.text import last_tokens
from worker.models.imatrix.calibration import load_calibration
from worker.models.imatrix.compute import CalibrationChunks
from worker.models.imatrix.sums import mean_squares
from worker.models.mixture.recipe import PLAIN, Recipe
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.sensitivity.compute import CHUNK_TOKENS, compute_sensitivity
from worker.models.sensitivity.gguf_form import read_sensitivity
from worker.models.sensitivity.sums import Sensitivity
from worker.models.sizes import machine_memory_bytes
from worker.setting import ON_THIS_MACHINE, WorkSetting


@dataclass(frozen=True)
class LocalFits:
    """What fits of a kept file are decided by.

    Attributes:
        sensitivity: A sensitivity file of the same model; computed where not given.
        model: The model's directory, with which sensitivities are computed and candidates measured.
        imatrix: Importance matrix; the one in the sensitivities where not given.
        options: Allowed types and context.
        recipe: Types that tensors are kept at.
    """

    sensitivity: Path | None = None
    model: Path | None = None
    imatrix: ImatrixData | None = None
    options: FitOptions = field(default_factory=FitOptions)
    recipe: Recipe = PLAIN


@dataclass(frozen=True)
class LocalFitResult:
    """Fits, decided, and the matrix that their files are made with."""

    fits: Mapping[FitType, tuple[FitProblem, FitDecision]]
    imatrix: ImatrixData


def decide_local(
    source: Path, fits: Sequence[FitType], by: LocalFits, *, setting: WorkSetting = ON_THIS_MACHINE
) -> LocalFitResult:
    """Decide fits: by measurement where the model's directory is given, else by prediction.

    Raises:
        PackagingError: ``request_invalid`` where neither a sensitivity file nor a directory is given,
            ``sensitivity_invalid``, ``fit_impossible``, and as computing and measuring do.
        StopRequested: as asked.
    """
    if by.sensitivity is None and by.model is None:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            "a fit needs to know what each tensor means for the model",
            remedy="Give a sensitivity file with --sensitivity, or the model's directory with --model.",
            fields={"field": "fit.sensitivity"},
        )
    name = (by.sensitivity or by.model or source).name
    # what is known from headers is refused before the model is run
    _limits(space_of(source, by.imatrix, by.options.allowed, by.recipe), fits, by)
    sensitivity = read_sensitivity(by.sensitivity) if by.sensitivity is not None else _computed(by, setting)
    matrix = by.imatrix or mean_squares(sensitivity.matrix(), name)
    space = space_of(source, matrix, by.options.allowed, by.recipe)
    bare = _limits(space, fits, by)
    prices = price_tensors(source, sensitivity, price_types(space, bare), matrix, setting=setting)
    problems = [FitProblem(space, prices, problem.fit, problem.limit) for problem in bare]
    subject = _subject(source, by.model, matrix, space) if by.model is not None else None
    decided = {
        problem.fit: (
            problem,
            predicted_best(problem) if subject is None else decide(problem, subject, setting=setting),
        )
        for problem in problems
    }
    return LocalFitResult(decided, matrix)


def _limits(space: FitSpace, fits: Sequence[FitType], by: LocalFits) -> list[FitProblem]:
    return [
        FitProblem(space, Prices(()), fit, space.limit_of(fit, by.options.context, machine_memory_bytes()))
        for fit in fits
    ]


def _computed(by: LocalFits, setting: WorkSetting) -> Sensitivity:
    assert by.model is not None
    base = open_base_model(by.model, allowed_roots=Roots.anywhere())
    with tempfile.TemporaryDirectory(prefix="sensitivity-") as work:
        return compute_sensitivity(
            base,
            None,
            CalibrationChunks(load_calibration(), by.model, None, CHUNK_TOKENS),
            work_dir=Path(work),
            setting=setting,
        ).sensitivity


def _subject(source: Path, model: Path, matrix: ImatrixData, space: FitSpace) -> FitSubject:
    anywhere = Roots.anywhere()
    base = open_base_model(model, allowed_roots=anywhere)
    tokenizer = load_tokenizer(find_tokenizer(None, model, None, allowed_roots=anywhere), base.config)
    return FitSubject(base, None, source, matrix, last_tokens(shipped_text(tokenizer).sequences, space.elements))

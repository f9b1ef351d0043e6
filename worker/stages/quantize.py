"""Quantize: one pass over the unquantized GGUF for all quant types.

Reads the GGUF and, where there are, the importance matrix and the sensitivities; writes one GGUF per type to scratch,
and the recipe of each fit. Where the GGUF is not written, the pass makes its tensors of base model and overlay
(``layout``). Types that an
earlier attempt finished, or that the job published before a replay, are taken over where they were made from the same
inputs; a type that fails does not stop the others. So a replay makes only what is missing.
Raises ``imatrix_required``, ``imatrix_mismatch``, ``fit_impossible``, ``weights_not_finite``,
``disk_space_insufficient``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api_client.contract.fit import AnyQuantType, FitType, fits_of
from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from api_client.contract.outputs import QUANTIZED, RECIPE
from api_client.contract.size_curve import CURVE_FACT
from worker.models.imatrix.load import load_imatrix
from worker.models.kernels import use_cache
from worker.models.mixture.recipe import PLAIN, Recipe, Recipes
from worker.models.quantize.engine import quantize_source
from worker.models.quantize.result import TypeOutcome
from worker.models.quantize.source import Source, open_source
from worker.stages.ahead import made_ahead
from worker.stages.context import StageContext, StageResult
from worker.stages.fitting import JobFit, curve_of, decide_fits, same_files, write_recipe
from worker.stages.layout import job_layout, layout_identity, open_layout
from worker.stages.quantized import quantized_artifact, tell_lattices, tell_made
from worker.storage.atomic import atomic_write_text, place_file

RECORD = "quantized.json"


def run(context: StageContext) -> StageResult:
    """Quantize to every type that is not finished yet; a part such as a projector stays as it is."""
    sources = _sources(context)
    matrix = context.matrix()
    made_from = {
        "source": "+".join(source.identity for source in sources),
        "imatrix": matrix.sha256 if matrix else None,
    }
    if fits_of(context.options.quant_types):
        made_from["sensitivity"] = "+".join(a.sha256 for a in context.artifacts(ArtifactKind.SENSITIVITY))
    record = _Record(context.scratch / RECORD, made_from)
    same_inputs = context.previous.facts.get("made_from") == made_from
    # the supervisor has checked the digests of what is left from before a replay
    before = {artifact.name: artifact for artifact in context.previous.artifacts} if same_inputs else {}
    kept = before | record.finished()
    wanted = {name: quant for source in sources for quant, name in _names(context, source).items()}
    for name in kept:
        context.report.log(f"{name} is already made")
    ahead = {name: made for name, made in made_ahead(context, made_from).items() if name not in kept}
    for made in ahead.values():
        tell_made(context, made)
    finished = kept | ahead
    record.write(finished)
    missing = [name for name in wanted if name not in kept]
    use_cache(context.settings.kernel_cache_dir)
    curve = context.previous.facts.get(CURVE_FACT) if same_inputs else None
    for source in sources:
        fits = _quantize(context, source, matrix if source.part is ModelPart.MODEL else None, finished, record)
        curve = curve_of(context, fits) if fits else curve
    facts: dict[str, Any] = {
        "made": [wanted[name].value for name in missing],
        "taken_over": [quant.value for name, quant in wanted.items() if name not in missing],
        "made_from": made_from,
        **({CURVE_FACT: curve} if curve is not None else {}),
    }
    recipes = [name for source in sources for name in _recipe_names(context, source).values()]
    return StageResult(tuple(finished[name] for name in (*wanted, *recipes)), facts)


@dataclass(frozen=True)
class _Source:
    """A model to quantize.

    Attributes:
        file: Its unquantized file, or the layout of one.
        stem: What its files are called after.
        identity: Tells it from any other.
    """

    file: Artifact
    stem: str
    identity: str

    @property
    def part(self) -> ModelPart:
        """Which part of the model it is."""
        return self.file.part


def _sources(context: StageContext) -> list[_Source]:
    layout = job_layout(context)
    files = [artifact for artifact in context.artifacts(ArtifactKind.GGUF) if artifact.part.is_quantized]
    sources = [_Source(file, Path(file.name).stem, file.sha256) for file in files]
    if layout is not None:
        sources.append(_Source(layout, context.names.model, layout_identity(context, layout)))
    return sources


@contextmanager
def _opened(context: StageContext, source: _Source) -> Iterator[Source]:
    if source.file.kind is ArtifactKind.LAYOUT:
        with open_layout(context, source.file) as unwritten:
            yield unwritten
        return
    with open_source(Path(source.file.path)) as file:
        yield file


def _quantize(
    context: StageContext, source: _Source, matrix: Artifact | None, finished: dict[str, Artifact], record: _Record
) -> Mapping[FitType, JobFit]:
    """Make what is missing of one source, and add it to what is finished; the fits that were decided for it."""
    names, recipe_names = _names(context, source), _recipe_names(context, source)
    missing = {
        quant: context.scratch / name
        for quant, name in names.items()
        if name not in finished or recipe_names.get(quant, name) not in finished
    }
    if not missing:
        return {}
    fits = decide_fits(context, source.file, fits_of(tuple(missing)))
    for fit, job_fit in fits.items():
        finished[recipe_names[fit]] = write_recipe(context.scratch / recipe_names[fit], job_fit)
    asked = Recipe.of(context.request.recipe) if source.part is ModelPart.MODEL else PLAIN
    same = same_files(missing, fits)
    with _opened(context, source) as opened:
        result = quantize_source(
            opened,
            {quant: path for quant, path in missing.items() if quant not in same},
            imatrix=load_imatrix(Path(matrix.path)) if matrix else None,
            recipes=Recipes(
                asked,
                {fit: job_fit.decision.mixture.made for fit, job_fit in fits.items()},
                hits_lattice=context.request.lattice == "auto",
            ),
            setting=context.setting("weights"),
        )
    tell_lattices(context, result)
    for quant, outcome in result.outcomes.items():
        if outcome.error is None:
            finished[names[quant]] = _artifact(context, source, quant, outcome, fits)
    for quant, other in same.items():
        if result.outcomes[other].error is None:
            context.report.log(f"{names[quant]} has come out the same as {names[other]}: made once, linked")
            place_file(result.outcomes[other].path, missing[quant])
            made = replace(result.outcomes[other], path=missing[quant])
            finished[names[quant]] = _artifact(context, source, quant, made, fits)
    record.write(finished)
    for error in result.failed.values():
        raise error
    return fits


def _names(context: StageContext, source: _Source) -> dict[AnyQuantType, str]:
    """Files of one source by type; fits are of the model itself alone."""
    types = context.options.quant_types
    of_part = [quant for quant in types if source.part is ModelPart.MODEL or not isinstance(quant, FitType)]
    return {quant: _name(context, source, quant) for quant in of_part}


def _recipe_names(context: StageContext, source: _Source) -> dict[AnyQuantType, str]:
    """Recipe files by fit."""
    names = replace(context.names, model=source.stem)
    return {fit: names.name(RECIPE, fit) for fit in _names(context, source) if isinstance(fit, FitType)}


def _name(context: StageContext, source: _Source, quant: AnyQuantType) -> str:
    return replace(context.names, model=source.stem).name(QUANTIZED, quant)


class _Record:
    """Which types are finished, kept beside the files; of another source or matrix it counts for nothing."""

    def __init__(self, path: Path, made_from: Mapping[str, str | None]) -> None:
        self._path = path
        self._key = dict(made_from)

    def finished(self) -> dict[str, Artifact]:
        """Artifacts whose files are there with the recorded size and digest."""
        try:
            content = json.loads(self._path.read_text("utf-8"))
            if content["key"] != self._key:
                return {}
            artifacts = [Artifact.model_validate(item) for item in content["artifacts"]]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {artifact.name: artifact for artifact in artifacts if artifact.is_whole()}

    def write(self, finished: Mapping[str, Artifact]) -> None:
        """Replace the record."""
        content: dict[str, Any] = {
            "key": self._key,
            "artifacts": [a.model_dump(mode="json") for a in finished.values()],
        }
        atomic_write_text(self._path, json.dumps(content))


def _artifact(
    context: StageContext,
    source: _Source,
    quant: AnyQuantType,
    outcome: TypeOutcome,
    fits: Mapping[FitType, JobFit],
) -> Artifact:
    """Say what was made, and describe it."""
    fit = {"fit": fits[quant].facts()} if isinstance(quant, FitType) else {}
    artifact = quantized_artifact(quant, outcome, source.part, fit)
    tell_made(context, artifact)
    return artifact

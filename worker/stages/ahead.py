"""Working ahead: convert quantizes what it writes, where nothing has to be computed in between.

One pass then reads the base model once, writes the unquantized file and every quant type, and reads neither again but
for the digests of the small ones. The plan and what each stage answers for stay as they are: convert is done once the
unquantized file is whole, whatever became of the types; quantize takes over those that a record in scratch names, made
of this very file and matrix, and makes the others of the file, with their errors. Where quantizing cannot even begin,
convert writes its file as ever, and quantize says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.contract.errors import PackagingError
from api_client.contract.fit import AnyQuantType, fits_of
from api_client.contract.job import Artifact, ModelPart, StageName
from api_client.contract.outputs import QUANTIZED
from worker.models.convert.pipeline import Conversion, write_conversion
from worker.models.convert.unwritten import open_unwritten
from worker.models.convert.writer import WrittenFile
from worker.models.imatrix.load import load_imatrix
from worker.models.kernels import use_cache
from worker.models.mixture.recipe import Recipe, Recipes
from worker.models.quantize.copy_file import CopyFile, CopyPlan
from worker.models.quantize.engine import run_pass
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.prepare import prepare
from worker.models.quantize.result import QuantizeResult
from worker.stages.context import StageContext
from worker.stages.quantized import quantized_artifact, tell_lattices
from worker.storage.atomic import atomic_write_text
from worker.storage.checksums import sha256_file

_RECORD = "ahead.json"


def works_ahead(context: StageContext) -> bool:
    """Whether convert may quantize: the job has types, no fit, and no matrix to compute first.

    Not in a replay, where files that were published may be taken over instead.
    """
    if not context.options.quantize or fits_of(context.options.quant_types) or context.previous.artifacts:
        return False
    return StageName.IMATRIX not in context.plan or context.prepared.imatrix.path is not None


def write_and_quantize(context: StageContext, conversion: Conversion, path: Path) -> WrittenFile | None:
    """Write the unquantized file and, as far as they can be made, the types; None where none can.

    Raises:
        StopRequested: As asked; partial files stay.
        PackagingError: why the unquantized file is not there; types that are finished are kept for the next attempt.
    """
    given = context.prepared.imatrix.path
    record = _Record(context, conversion.identity, sha256_file(given) if given is not None else None)
    finished = record.finished()
    missing: dict[AnyQuantType, Path] = {}
    for quant in context.options.quant_types:
        output = context.scratch / context.names.name(QUANTIZED, quant)
        if output.name not in finished:
            missing[quant] = output
    if not missing:
        written = write_conversion(conversion, path, context.setting())
        record.write(finished, written.sha256)
        return written
    use_cache(context.settings.kernel_cache_dir)
    try:
        imatrix = load_imatrix(given) if given is not None else None
        result, copy = _pass(context, conversion, path, missing, imatrix)
    except PackagingError:  # convert without it, and quantize after it, meet it again and say so in their place
        return None
    tell_lattices(context, result)
    for quant, outcome in result.outcomes.items():
        if outcome.error is None:
            artifact = quantized_artifact(quant, outcome, ModelPart.MODEL)
            finished[artifact.name] = artifact
    record.write(finished, copy.sha256)
    if copy.error is not None:
        raise copy.error
    return WrittenFile(path, copy.plan.size_bytes, copy.sha256, copy.resumed_bytes)


def made_ahead(context: StageContext, made_from: Mapping[str, str | None]) -> dict[str, Artifact]:
    """Types that convert has made, by file name, where they are still there; by size, as other files of a stage are."""
    content = _read(context)
    if content.get("made_from") != made_from:
        return {}
    return {artifact.name: artifact for artifact in _artifacts(content) if artifact.is_whole(in_full=False)}


def _pass(
    context: StageContext,
    conversion: Conversion,
    path: Path,
    outputs: Mapping[AnyQuantType, Path],
    imatrix: ImatrixData | None,
) -> tuple[QuantizeResult, CopyFile]:
    recipes = Recipes(Recipe.of(context.request.recipe), hits_lattice=context.request.lattice == "auto")
    with open_unwritten(str(path), conversion, context.settings.threads) as source:
        preparation = prepare(source, list(outputs), imatrix, recipes, allow_requantize=False)
        plan = CopyPlan(conversion.plan.header, source.tensors, source.size_bytes, conversion.identity)
        copy = CopyFile(path, plan)
        setting = context.setting("weights")
        return run_pass(source, preparation, outputs, imatrix=imatrix, copy=copy, setting=setting), copy


@dataclass(frozen=True)
class _Record:
    """Types that are finished, kept in scratch; of another conversion or matrix it counts for nothing."""

    context: StageContext
    identity: str
    imatrix: str | None

    def finished(self) -> dict[str, Artifact]:
        """Those of an earlier attempt, by file name, read in full."""
        content = _read(self.context)
        if (content.get("identity"), content.get("imatrix")) != (self.identity, self.imatrix):
            return {}
        return {artifact.name: artifact for artifact in _artifacts(content) if artifact.is_whole()}

    def write(self, finished: Mapping[str, Artifact], sha256: str) -> None:
        """Replace the record; ``sha256`` is the unquantized file's, empty where there is none."""
        content = {
            "identity": self.identity,
            "imatrix": self.imatrix,
            "made_from": {"source": sha256, "imatrix": self.imatrix} if sha256 else None,
            "artifacts": [artifact.model_dump(mode="json") for artifact in finished.values()],
        }
        atomic_write_text(self.context.scratch / _RECORD, json.dumps(content))


def _read(context: StageContext) -> dict[str, Any]:
    try:
        content = json.loads((context.scratch / _RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _artifacts(content: Mapping[str, Any]) -> list[Artifact]:
    try:
        return [Artifact.model_validate(item) for item in content["artifacts"]]
    except (ValueError, KeyError, TypeError):
        return []

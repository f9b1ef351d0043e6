"""Quantize: one pass over the unquantized GGUF for all quant types.

Reads the GGUF and, where there is one, the importance matrix; writes one GGUF per type to scratch. Types that an
earlier attempt finished, or that the job published before a replay, are taken over where they were made from the same
inputs; a type that fails does not stop the others. So a replay makes only what is missing.
Raises ``imatrix_required``, ``imatrix_mismatch``, ``weights_not_finite``, ``disk_space_insufficient``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api_client.job import Artifact, ArtifactKind
from api_client.quant_types import QuantType
from worker.imatrix.load import load_imatrix
from worker.kernels import use_cache
from worker.quantize.engine import quantize_file
from worker.quantize.result import QuantizeProgress, TypeOutcome
from worker.stages.context import StageContext, StageResult
from worker.stages.outputs import model_stem, quantized_name
from worker.storage.atomic import atomic_write_text
from worker.storage.checksums import sha256_file

RECORD = "quantized.json"


def run(context: StageContext) -> StageResult:
    """Quantize to every type that is not finished yet."""
    (source,) = context.artifacts(ArtifactKind.GGUF)
    matrices = context.artifacts(ArtifactKind.IMATRIX)
    stem = model_stem(context.request, context.options, context.prepared.base_name)
    made_from = {"source": source.sha256, "imatrix": matrices[0].sha256 if matrices else None}
    record = _Record(context.scratch / RECORD, made_from)
    finished = _made_before(context, made_from) | record.finished()
    for quant in finished:
        context.report.log(f"{quant.value} is already made")
    missing = [quant for quant in context.options.quant_types if quant not in finished]
    if missing:
        use_cache(context.settings.kernel_cache_dir)
        result = quantize_file(
            Path(source.path),
            {quant: context.scratch / quantized_name(stem, quant) for quant in missing},
            imatrix=load_imatrix(Path(matrices[0].path)) if matrices else None,
            threads=context.settings.threads,
            report=lambda progress: _report(context, progress),
            should_stop=context.report.should_stop,
        )
        for quant, outcome in result.outcomes.items():
            if outcome.error is None:
                finished[quant] = _artifact(context, quant, outcome)
                record.write(finished)
        for error in result.failed.values():
            raise error
    artifacts = tuple(finished[quant] for quant in context.options.quant_types)
    taken_over = [quant.value for quant in context.options.quant_types if quant not in missing]
    return StageResult(
        artifacts, {"made": [quant.value for quant in missing], "taken_over": taken_over, "made_from": made_from}
    )


def _made_before(context: StageContext, made_from: Mapping[str, str | None]) -> dict[QuantType, Artifact]:
    """Files of these inputs that are left from before a replay; the supervisor has checked their digests."""
    if context.previous.facts.get("made_from") != made_from:
        return {}
    return {QuantType(a.quant_type): a for a in context.previous.artifacts if a.quant_type}


class _Record:
    """Which types are finished, kept beside the files; of another source or matrix it counts for nothing."""

    def __init__(self, path: Path, made_from: Mapping[str, str | None]) -> None:
        self._path = path
        self._key = dict(made_from)

    def finished(self) -> dict[QuantType, Artifact]:
        """Artifacts whose files are there with the recorded size and digest."""
        try:
            content = json.loads(self._path.read_text("utf-8"))
            if content["key"] != self._key:
                return {}
            artifacts = [Artifact.model_validate(item) for item in content["artifacts"]]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {QuantType(a.quant_type): a for a in artifacts if a.quant_type and _is_whole(a)}

    def write(self, finished: Mapping[QuantType, Artifact]) -> None:
        """Replace the record."""
        content: dict[str, Any] = {
            "key": self._key,
            "artifacts": [a.model_dump(mode="json") for a in finished.values()],
        }
        atomic_write_text(self._path, json.dumps(content))


def _is_whole(artifact: Artifact) -> bool:
    path = Path(artifact.path)
    return path.is_file() and path.stat().st_size == artifact.size_bytes and sha256_file(path) == artifact.sha256


def _report(context: StageContext, progress: QuantizeProgress) -> None:
    context.report.progress(progress.elements_done, progress.elements_total, "weights", progress.tensor)


def _artifact(context: StageContext, quant: QuantType, outcome: TypeOutcome) -> Artifact:
    mixture = dict(outcome.mixture_counts)
    note = (
        f", {outcome.fallback_count} tensors fell back to a type that fits their rows" if outcome.fallback_count else ""
    )
    context.report.log(
        f"{outcome.path.name}: {outcome.bits_per_weight:.2f} bits per weight{note}",
        quant_type=quant.value,
        mixture=mixture,
    )
    return Artifact(
        name=outcome.path.name,
        path=str(outcome.path),
        kind=ArtifactKind.QUANTIZED,
        size_bytes=outcome.size_bytes,
        sha256=outcome.sha256,
        quant_type=quant.value,
        facts={
            "mixture": mixture,
            "bits_per_weight": outcome.bits_per_weight,
            "fallback_count": outcome.fallback_count,
            "resumed_tensors": outcome.resumed_tensors,
        },
    )

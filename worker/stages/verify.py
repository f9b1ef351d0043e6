"""Verify: every GGUF made is well formed, loads in llama.cpp and does what it is for, before anything is published.

Reads the artifacts of convert, quantize and export_lora; writes nothing but the shards of files above the
request's size limit. Safe to repeat.
Raises ``gguf_invalid``, ``weights_not_finite`` and ``output_does_not_load``.
"""

from __future__ import annotations

from pathlib import Path

from api_client.job import Artifact, ArtifactKind
from worker.checkpoint import open_base_model
from worker.convert.pipeline import plan_conversion
from worker.gguf.check import check_gguf
from worker.quantize.split import split_gguf
from worker.stages.context import StageContext, StageResult
from worker.storage.checksums import sha256_file
from worker.verify.adapter import check_adapter
from worker.verify.ask import Question
from worker.verify.load import loader_installed, prove


def run(context: StageContext) -> StageResult:
    """Check every GGUF artifact of the job."""
    files = context.artifacts(ArtifactKind.GGUF, ArtifactKind.QUANTIZED, ArtifactKind.LORA)
    load = context.settings.verify_load and loader_installed()
    if not load:
        context.report.log("llama.cpp is not used here: structure is checked, loading is not", level="warning")
    answers: dict[str, str] = {}
    shards: list[Artifact] = []
    for index, artifact in enumerate(files):
        context.report.progress(index, len(files), "files", artifact.name)
        context.stop_point()
        check_gguf(Path(artifact.path))
        if artifact.kind is ArtifactKind.LORA:
            count = check_adapter(Path(artifact.path), _base_shapes(context))
            context.report.log(f"{artifact.name} fits {count} tensors of its base model", file=artifact.name)
        elif load:
            answers[artifact.name] = _answer(context, artifact)
            context.report.log(f"{artifact.name} loads and {answers[artifact.name]}", file=artifact.name)
        else:
            context.report.log(f"{artifact.name} is well formed", file=artifact.name)
        shards += _split(context, artifact, load=load)
    context.report.progress(len(files), len(files), "files")
    return StageResult(tuple(shards), {"loaded": sorted(answers), "checked": [artifact.name for artifact in files]})


def _split(context: StageContext, artifact: Artifact, *, load: bool) -> list[Artifact]:
    """Shards of a file above the size limit; the first is loaded, which opens them all. They replace it in publish."""
    limit = context.request.split_max_size_bytes
    if limit is None or artifact.size_bytes <= limit or artifact.kind is ArtifactKind.LORA:
        return []
    paths = split_gguf(Path(artifact.path), limit)
    if len(paths) == 1:
        return []
    for path in paths:
        check_gguf(path)
    if load:
        _answer(context, artifact.model_copy(update={"path": str(paths[0])}))
    context.report.log(f"{artifact.name} is split into {len(paths)} files", file=artifact.name)
    return [
        artifact.model_copy(
            update={
                "name": path.name,
                "path": str(path),
                "size_bytes": path.stat().st_size,
                "sha256": sha256_file(path),
                "facts": artifact.facts | {"shard_of": artifact.name},
            }
        )
        for path in paths
    ]


def _base_shapes(context: StageContext) -> dict[str, tuple[int, ...]]:
    """Every tensor of the base model's GGUF, as a conversion would write it."""
    _, plan = plan_conversion(
        open_base_model(context.prepared.base_dir, allowed_roots=context.settings.allowed_roots),
        allowed_roots=context.settings.allowed_roots,
        llama_cpp_dir=context.settings.llama_cpp_dir,
        scratch_dir=context.scratch,
    )
    return {tensor.name: tensor.shape for tensor in plan.tensors}


def _answer(context: StageContext, artifact: Artifact) -> str:
    return prove(Question(artifact.path, threads=context.settings.threads))

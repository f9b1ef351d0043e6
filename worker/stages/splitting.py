"""Splitting: models above the request's size limit, cut into shards in llama.cpp's naming. Part of ``verify``.

It is a step of its own and no stage: a whole file is checked before it is cut and its shards after, so both belong to
what must hold before anything is published, and a plan of its own would add a stage to jobs that split nothing.
"""

from __future__ import annotations

from pathlib import Path

from api_client.contract.job import Artifact, ModelPart
from worker.models.quantize.split import split_gguf
from worker.stages.context import StageContext


def must_split(context: StageContext, artifact: Artifact) -> bool:
    """Whether the request wants this file in shards; llama.cpp loads adapters and projectors whole only."""
    limit = context.request.split_max_size_bytes
    return (
        limit is not None
        and artifact.kind.is_model
        and artifact.part is ModelPart.MODEL
        and artifact.size_bytes > limit
    )


def split(context: StageContext, artifact: Artifact) -> tuple[Artifact, ...]:
    """Shards of a file, in order; they replace it in publish. None where its tensors fit into one file after all.

    Raises:
        PackagingError: as ``worker.models.quantize.split.split_gguf``.
    """
    limit = context.request.split_max_size_bytes
    paths = split_gguf(Path(artifact.path), limit) if limit is not None else []
    if len(paths) < 2:
        return ()
    context.report.log(f"{artifact.name} is split into {len(paths)} files", file=artifact.name)
    facts = artifact.facts | {"shard_of": artifact.name}
    return tuple(
        Artifact.of(path, artifact.kind, quant_type=artifact.quant_type, part=artifact.part, facts=facts)
        for path in paths
    )

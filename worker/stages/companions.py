"""Companion files on request: a model card for the Hub and an Ollama Modelfile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from api_client.job import Artifact, ArtifactKind
from worker.checkpoint import open_base_model
from worker.convert.companions import CardFile, Relation, model_card, modelfile
from worker.convert.metadata import end_tokens
from worker.stages.context import StageContext
from worker.stages.inputs import job_metadata, job_tokenizer
from worker.stages.outputs import CARD, MODELFILE, model_stem
from worker.storage.atomic import atomic_write_text
from worker.storage.checksums import sha256_file

_LISTED = (ArtifactKind.GGUF, ArtifactKind.QUANTIZED, ArtifactKind.LORA)


def write_companions(context: StageContext, files: Sequence[Artifact]) -> list[Artifact]:
    """Write them to scratch where the request wants them; the Modelfile names the first quantized file."""
    if not context.request.companions:
        return []
    prepared = context.prepared
    listed = [artifact for artifact in files if artifact.kind in _LISTED]
    title = model_stem(context.request, context.options, prepared.base_name)
    texts = {CARD: model_card(title, job_metadata(context), [_card_file(a) for a in listed], _relation(context))}
    models = [artifact for artifact in listed if artifact.kind is not ArtifactKind.LORA]
    if models:
        model = next((a for a in models if a.kind is ArtifactKind.QUANTIZED), models[0])
        base = open_base_model(prepared.base_dir, allowed_roots=context.settings.allowed_roots, allow_quantized=True)
        texts[MODELFILE] = modelfile(model.name, end_tokens(job_tokenizer(context), base.config))
    return [_written(context.scratch / name, text) for name, text in texts.items()]


def _relation(context: StageContext) -> Relation:
    if context.options.export_lora:
        return "adapter"
    return "finetune" if context.options.merge_lora else "quantized"


def _card_file(artifact: Artifact) -> CardFile:
    mixture = artifact.facts["mixture"]
    kind = artifact.quant_type or max(mixture, key=mixture.__getitem__)
    return CardFile(artifact.name, kind, artifact.size_bytes, artifact.sha256, artifact.facts.get("bits_per_weight"))


def _written(path: Path, text: str) -> Artifact:
    atomic_write_text(path, text)
    return Artifact(
        name=path.name,
        path=str(path),
        kind=ArtifactKind.COMPANION,
        size_bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )

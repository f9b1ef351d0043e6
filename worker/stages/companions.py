"""Companion files on request: a model card for the Hub and an Ollama Modelfile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from api_client.contract.outputs import CARD, MODELFILE
from api_client.contract.quality import QualityReport
from worker.models.checkpoint import open_base_model
from worker.models.convert.companions import CardFile, Relation, model_card, modelfile
from worker.models.convert.metadata import end_tokens
from worker.stages.context import StageContext
from worker.stages.inputs import job_metadata, job_tokenizer
from worker.storage.atomic import atomic_write_text


def write_companions(context: StageContext, files: Sequence[Artifact]) -> list[Artifact]:
    """Write them to scratch where the request wants them; the Modelfile names the first quantized file."""
    if not context.request.companions:
        return []
    prepared, names = context.prepared, context.names
    projector = _projector(files)
    texts = {names.name(CARD): card_text(context, files)}
    models = [a for a in files if a.kind.is_model and a.part is ModelPart.MODEL]
    if models:
        model = next((a for a in models if a.kind is ArtifactKind.QUANTIZED), models[0])
        base = open_base_model(prepared.base_dir, allowed_roots=context.settings.allowed_roots, as_stored=True)
        texts[names.name(MODELFILE)] = modelfile(model.name, end_tokens(job_tokenizer(context), base.config), projector)
    return [_written(context.scratch / name, text) for name, text in texts.items()]


def card_text(context: StageContext, files: Sequence[Artifact]) -> str:
    """The model card, with a row for every GGUF file."""
    quality = _quality(files)
    listed = [artifact for artifact in files if artifact.kind.is_gguf]
    listed.sort(key=lambda artifact: artifact.part is ModelPart.PROJECTOR)
    cards = [_card_file(artifact, quality) for artifact in listed]
    return model_card(context.names.model, job_metadata(context), cards, _relation(context), _projector(files))


def _projector(files: Sequence[Artifact]) -> str | None:
    return next((a.name for a in files if a.kind.is_gguf and a.part is ModelPart.PROJECTOR), None)


def _relation(context: StageContext) -> Relation:
    if context.options.export_lora:
        return "adapter"
    return "finetune" if context.options.merge_lora else "quantized"


def _quality(files: Sequence[Artifact]) -> QualityReport | None:
    """The report among the files, where the job has measured them."""
    report = next((artifact for artifact in files if artifact.kind is ArtifactKind.QUALITY), None)
    return QualityReport.model_validate_json(Path(report.path).read_bytes()) if report is not None else None


def type_of(artifact: Artifact) -> str:
    """Name of a GGUF file's type; of an unquantized one the type that most of it has."""
    mixture = artifact.facts["mixture"]
    return artifact.quant_type or str(max(mixture, key=mixture.__getitem__))


def _card_file(artifact: Artifact, quality: QualityReport | None) -> CardFile:
    kind = type_of(artifact)
    measured = quality.file(artifact.shard_of or artifact.name) if quality is not None else None
    bits = artifact.facts.get("bits_per_weight")
    return CardFile(artifact.name, kind, artifact.size_bytes, artifact.sha256, bits, measured)


def _written(path: Path, text: str) -> Artifact:
    atomic_write_text(path, text)
    return Artifact.of(path, ArtifactKind.COMPANION)

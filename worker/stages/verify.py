"""Verify: every GGUF made is well formed, loads in llama.cpp and does what it is for, before anything is published.

What embeds or ranks is held to base and overlay in transformers (``witness``). Reads the artifacts of merge, convert,
quantize and export_lora; writes nothing but the shards of files above the request's size limit. Safe to repeat.
Raises ``gguf_invalid``, ``weights_not_finite``, ``output_does_not_load``, ``draft_head_invalid`` and, where llama.cpp
reads a chat otherwise than training did, ``tokenizer_unsupported``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.contract.job import Artifact, ArtifactKind, ModelPart, StageName
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import plan_conversion
from worker.models.gguf.check import check_gguf
from worker.models.verify.adapter import check_adapter
from worker.models.verify.ask import Question
from worker.models.verify.load import SPACES_READ, loader_installed, prove
from worker.models.verify.purpose import Purpose, purpose_of
from worker.models.verify.senses import prove_projector
from worker.models.verify.tokens import Rendered, rendered_chat
from worker.models.verify.witness import Proof, Witness
from worker.stages.context import StageContext, StageResult
from worker.stages.drafts import prove_drafts
from worker.stages.facts import without_paths
from worker.stages.inputs import job_base, job_overlay, job_tokenizer
from worker.stages.splitting import must_split, split

if TYPE_CHECKING:
    from worker.models.verify.reference import TrainedModel


def run(context: StageContext) -> StageResult:
    """Check every GGUF artifact of the job, and the shards of those that are split."""
    files = context.artifacts(*(kind for kind in StageName.VERIFY.spec.reads if kind.is_gguf))
    load = context.settings.verify_load and loader_installed()
    if not load:
        context.report.log("llama.cpp is not used here: structure is checked, loading is not", level="warning")
    loaded: list[str] = []
    alike: dict[str, dict[str, float | bool]] = {}
    prompts: dict[str, str] = {}
    drafts: dict[str, dict[str, Any]] = {}
    witness = Witness(lambda: _trained(context))
    chat = rendered_chat(job_tokenizer(context)) if load and any(map(_runs, files)) else None
    shards: list[Artifact] = []
    model = next((artifact for artifact in files if _runs(artifact)), None)
    for index, artifact in enumerate(files):
        context.report.progress(index, len(files), "files", artifact.name)
        context.stop_point()
        proof = _check(context, artifact, chat, witness if load else None)
        loaded += [artifact.name] if proof is not None else []
        if proof is not None and (told := prove_drafts(context, artifact)) is not None:
            drafts[artifact.name] = told
        if proof is not None and proof.likeness is not None:
            alike[artifact.name] = proof.likeness.to_json()
            prompts |= proof.prompts
        if artifact.part is ModelPart.PROJECTOR and load and model is not None:
            said = prove_projector(Question(model.path, threads=context.settings.threads), Path(artifact.path))
            context.report.log(f"{artifact.name} beside {model.name} {said}", file=artifact.name)
            loaded.append(artifact.name)
        if must_split(context, artifact):
            made = split(context, artifact)
            _check_shards(context, made, load=load)
            shards += made
    context.report.progress(len(files), len(files), "files")
    facts = {"loaded": sorted(loaded), "checked": [artifact.name for artifact in files]}
    embeds = {"alike": alike} | ({"prompts": without_paths(prompts)} if prompts else {})
    return StageResult(tuple(shards), facts | (embeds if alike else {}) | ({"drafts": drafts} if drafts else {}))


def _runs(artifact: Artifact) -> bool:
    """Whether a file stands alone: an adapter does not, nor does a part."""
    return artifact.kind is not ArtifactKind.LORA and artifact.part is ModelPart.MODEL


def _check(context: StageContext, artifact: Artifact, chat: Rendered | None, witness: Witness | None) -> Proof | None:
    """Check one file; what it did where it was loaded, which a part that cannot stand alone is not."""
    check_gguf(Path(artifact.path))
    if artifact.kind is ArtifactKind.LORA:
        count = check_adapter(Path(artifact.path), _base_shapes(context))
        context.report.log(f"{artifact.name} fits {count} tensors of its base model", file=artifact.name)
        return None
    if witness is None or not _runs(artifact):
        context.report.log(f"{artifact.name} is well formed", file=artifact.name)
        return None
    if purpose_of(Path(artifact.path)) in (Purpose.EMBED, Purpose.RANK):
        proof = witness.prove(Question(artifact.path, threads=context.settings.threads))
    else:
        told = _answer(context, artifact, chat)
        proof = Proof(told, warns=told.endswith(SPACES_READ))
    level = "warning" if proof.warns else "info"
    context.report.log(f"{artifact.name} loads and {proof.did}", level=level, file=artifact.name)
    return proof


def _check_shards(context: StageContext, shards: Sequence[Artifact], *, load: bool) -> None:
    """The first is loaded, which opens them all."""
    for shard in shards:
        check_gguf(Path(shard.path))
    if load and shards and shards[0].part is ModelPart.MODEL:
        _answer(context, shards[0])


def _base_shapes(context: StageContext) -> dict[str, tuple[int, ...]]:
    """Every tensor of the base model's GGUF, as a conversion would write it."""
    _, plan = plan_conversion(
        open_base_model(context.prepared.base_dir, allowed_roots=context.settings.allowed_roots),
        setting=context.setting(),
    )
    return {tensor.name: tensor.shape for tensor in plan.tensors}


def _trained(context: StageContext) -> TrainedModel:
    """Base and overlay, to be asked by transformers, which is imported where a file embeds or ranks alone."""
    from worker.models.convert.sentence_modules import read_sentence_modules
    from worker.models.verify.reference import TrainedModel

    tokenizer, roots = job_tokenizer(context), context.settings.allowed_roots
    modules = read_sentence_modules(tokenizer.places, roots)
    return TrainedModel(job_base(context), job_overlay(context), tokenizer, modules, context.setting())


def _answer(context: StageContext, artifact: Artifact, chat: Rendered | None = None) -> str:
    return prove(Question(artifact.path, threads=context.settings.threads), chat)

"""What of a job goes to the place that ``upload_to`` names, and under which names.

To the Hub go all its files, by one commit, with the model card as ``README.md``. A registry gets an image for each
model file, tagged with its type: the file (or its shards), the projector, and the chat template, each a layer of the
media types of Docker's model specification (docker/model-spec, ``spec.md``; the configuration's fields as in
docker/model-runner, ``pkg/distribution/types``), which ``docker model pull`` and ``llama-server --docker-repo`` read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from api_client.contract.artifacts import Artifact, ArtifactKind, ModelPart
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.outputs import CARD, RECORDS
from api_client.contract.upload_targets import TargetKind, UploadTarget
from worker.models.gguf.reader import open_gguf
from worker.stages.companions import card_text, type_of
from worker.stages.context import StageContext
from worker.storage.atomic import atomic_write_text
from worker.storage.checksums import sha256_file
from worker.storage.hub_upload import HubUpload, check_hub_owner, upload_to_hub
from worker.storage.registry import MANIFEST_TYPE, Blob, Registry, digest_of
from worker.storage.targets import check_target

_CONFIG_TYPE = "application/vnd.docker.ai.model.config.v0.1+json"
_MODEL_TYPE = "application/vnd.docker.ai.gguf.v3"
_ADAPTER_TYPE = "application/vnd.docker.ai.gguf.v3.lora"
_PROJECTOR_TYPE = "application/vnd.docker.ai.mmproj"
_TEMPLATE_TYPE = "application/vnd.docker.ai.chat.template.jinja"
_ADAPTER_TAG = "lora"
Metering = Callable[[Artifact], Callable[[int], None]]
"""Where to tell how many bytes of a file are done."""


def check_upload_target(context: StageContext) -> None:
    """Refuse a place that cannot be written before anything is made.

    Raises:
        PackagingError: ``path_not_allowed``, ``storage_denied``, ``upload_failed``, ``dependency_missing``.
    """
    target = _target(context)
    if target is None:
        return
    check_target(target, context.settings.allowed_uploads)
    if target.kind is TargetKind.HUB:
        check_hub_owner(target.name)
    else:
        _registry(context, target).check_writable()


def publish_to_target(context: StageContext, files: Sequence[Artifact], meter: Metering) -> dict[str, Any]:
    """Send a job's files there; nothing where the request names no place.

    Args:
        context: The job's.
        files: All that it has published, records included.
        meter: As progress is told.

    Returns:
        Facts for the job's record.

    Raises:
        PackagingError: ``path_not_allowed``, ``output_exists``, ``storage_denied``, ``upload_failed``.
        StopRequested: as asked.
    """
    target = _target(context)
    if target is None:
        return {}
    check_target(target, context.settings.allowed_uploads)
    context.stop_point()
    context.report.confirm()
    send = _to_hub if target.kind is TargetKind.HUB else _to_registry
    return {"upload_to": str(target), **send(context, target, files, meter)}


def _target(context: StageContext) -> UploadTarget | None:
    return None if context.request.upload_to is None else UploadTarget.parse(context.request.upload_to)


def _registry(context: StageContext, target: UploadTarget) -> Registry:
    return Registry(target.host, target.name, plain_http=context.settings.registry_plain_http)


def _to_hub(context: StageContext, target: UploadTarget, files: Sequence[Artifact], meter: Metering) -> dict[str, Any]:
    card = CARD.recipe
    uploads = [
        HubUpload(
            artifact.name,
            Path(artifact.path),
            artifact.sha256,
            keeps_other=artifact.name == card,
            replaces=artifact.kind in RECORDS or artifact.kind is ArtifactKind.QUALITY,
        )
        for artifact in files
    ]
    if card not in (artifact.name for artifact in files):
        path = context.scratch / f"hub-{card}"
        atomic_write_text(path, card_text(context, files))
        uploads.append(HubUpload(card, path, sha256_file(path), keeps_other=True))
    of_name = {artifact.name: artifact for artifact in files}

    def on_sent(file: HubUpload) -> None:
        artifact = of_name.get(file.name)
        if artifact is not None:
            meter(artifact)(artifact.size_bytes)

    done = upload_to_hub(
        target.name,
        uploads,
        message=f"Files of {context.names.model}, packaged by trainpack (job {context.job_id})",
        overwrite=context.request.overwrite,
        on_sent=on_sent,
        should_stop=context.report.should_stop,
    )
    for name in done.kept:
        context.report.log(
            f"{name} of {target} was left as it is: it is another one than this job's, and overwrite is off",
            level="warning",
            file=name,
        )
    commit = done.commit[:12]
    if done.is_private:
        context.report.log(f"Published to {target} as commit {commit}; only its owner sees it")
    else:
        context.report.log(f"Published to {target} as commit {commit}; everybody sees it")
    return {"commit": done.commit, "private": done.is_private}


def _to_registry(
    context: StageContext, target: UploadTarget, files: Sequence[Artifact], meter: Metering
) -> dict[str, Any]:
    registry = _registry(context, target)
    images = dict(_images(target, files))
    digests: dict[str, str] = {}
    manifests = {tag: _manifest(context, registry, parts) for tag, parts in images.items()}
    for tag, manifest in manifests.items():
        there = registry.manifest_digest(tag)
        if there not in (None, digest_of(manifest)) and not context.request.overwrite:
            raise PackagingError(
                ErrorCode.OUTPUT_EXISTS,
                f"{target.host}/{target.name} has another image under {tag} already",
                remedy="Give another tag, as in oci://registry/repository:v2, or set overwrite.",
                fields={"field": "upload_to", "tag": tag},
            )
    sent: set[str] = set()
    for tag, parts in images.items():
        for artifact in parts:
            if artifact.sha256 not in sent:
                registry.put_blob(_blob(artifact), meter(artifact), context.report.should_stop)
                sent.add(artifact.sha256)
        context.report.confirm()
        digests[tag] = registry.put_manifest(tag, manifests[tag])
        context.report.log(f"Published the image {target.host}/{target.name}:{tag}", tag=tag)
    return {"images": digests}


def _images(target: UploadTarget, files: Sequence[Artifact]) -> Iterator[tuple[str, list[Artifact]]]:
    """Tag and files of each image: a model with its projector, or an adapter."""
    projectors = [artifact for artifact in files if artifact.kind.is_model and artifact.part is ModelPart.PROJECTOR]
    groups: dict[str, list[Artifact]] = {}
    for artifact in files:
        if artifact.kind.is_gguf and artifact.part is ModelPart.MODEL:
            groups.setdefault(artifact.shard_of or artifact.name, []).append(artifact)
    for parts in groups.values():
        first = parts[0]
        kind = type_of(first) if first.kind.is_model else _ADAPTER_TAG
        tag = kind if target.tag is None else target.tag if len(groups) == 1 else f"{target.tag}-{kind}"
        yield tag.replace(":", "-"), parts + (projectors if first.kind.is_model else [])


def _manifest(context: StageContext, registry: Registry, parts: Sequence[Artifact]) -> bytes:
    """The image's manifest; its configuration and template, which are small, are sent."""
    first = parts[0]
    with open_gguf(Path(first.path)) as file:
        values = {key: value.value for key, value in file.metadata.items() if not key.startswith("tokenizer.ggml.")}
    layers = [_blob(artifact).descriptor() for artifact in parts]
    template = values.get("tokenizer.chat_template")
    if isinstance(template, str) and first.kind.is_model:
        data = template.encode()
        path = {"org.cncf.model.filepath": "chat_template.jinja"}
        described = {"mediaType": _TEMPLATE_TYPE, "digest": registry.put_bytes(data), "size": len(data)}
        layers.append({**described, "annotations": path})
    architecture = str(values.get("general.architecture", ""))
    length = values.get(f"{architecture}.context_length")
    config = _json(
        {
            "config": {
                "format": "gguf",
                "quantization": type_of(first),
                "architecture": architecture,
                "size": f"{sum(artifact.size_bytes for artifact in parts) / 1e6:.2f}MB",
                **({"context_size": int(length)} if isinstance(length, int) else {}),
            },
            "descriptor": {},
            "rootfs": {"type": "rootfs", "diff_ids": [layer["digest"] for layer in layers]},
        }
    )
    digest = registry.put_bytes(config)
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": _CONFIG_TYPE, "digest": digest, "size": len(config)},
            "layers": layers,
            "annotations": {"org.opencontainers.image.title": context.names.model},
        }
    )


def _blob(artifact: Artifact) -> Blob:
    kind = _ADAPTER_TYPE if not artifact.kind.is_model else _MODEL_TYPE
    kind = _PROJECTOR_TYPE if artifact.part is ModelPart.PROJECTOR else kind
    return Blob(kind, Path(artifact.path), artifact.size_bytes, artifact.sha256, artifact.name)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

"""Publish: give the files their final names, upload and verify them, write manifest and checksums last.

Reads the artifacts of all stages. A file gets its final name by a hard link (a copy where the file system has none), so
the scratch copy stays until the job has succeeded and a replay finds its inputs. Safe to repeat: what is already there,
with the same size and sha256, stays. Raises ``output_exists``, ``upload_failed``, ``storage_denied``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from api_client.errors import ErrorCode, PackagingError
from api_client.job import Artifact, ArtifactKind
from api_client.request import is_remote
from worker.stages.companions import write_companions
from worker.stages.context import StageContext, StageResult
from worker.stages.manifest import checksum_lines, manifest, manifest_text, owner_of
from worker.stages.outputs import CHECKSUMS, MANIFEST
from worker.storage.atomic import atomic_write_text, place_file
from worker.storage.checksums import sha256_file
from worker.storage.location import S3Location
from worker.storage.paths import ensure_output_dir
from worker.storage.s3 import S3Storage

_MODEL_KINDS = (ArtifactKind.GGUF, ArtifactKind.QUANTIZED, ArtifactKind.LORA)


def run(context: StageContext) -> StageResult:
    """Publish every output of the job."""
    files = list(published_artifacts(context))
    files += write_companions(context, files)
    target = local_target(context)
    destination = upload_destination(context)
    total = sum(artifact.size_bytes for artifact in files) * (1 if destination is None else 2)
    meter = _Meter(context, total)
    if target is not None:
        context.report.confirm()
        target = ensure_output_dir(target, context.settings.allowed_roots)
        files = [_place(context, artifact, target, meter) for artifact in files]
    uploads = None if destination is None else _Uploads(context, destination)
    if uploads is not None:
        files = [uploads.send(artifact, meter.file(artifact)) for artifact in files]
    context.stop_point()
    context.report.confirm()
    files += _write_records(context, files, target, uploads)
    context.report.log(f"Published {len(files)} files", output_dir=context.request.output_dir)
    return StageResult(tuple(files), {"output_dir": context.request.output_dir})


def published_artifacts(context: StageContext) -> tuple[Artifact, ...]:
    """The files that go out: not the unquantized GGUF where the request drops it, a matrix only if computed here."""
    keep = context.request.keep_unquantized or not context.options.quantize
    models = context.artifacts(*(_MODEL_KINDS if keep else _MODEL_KINDS[1:]))
    merged = context.artifacts(ArtifactKind.MERGED_MODEL)
    matrices = (a for a in context.artifacts(ArtifactKind.IMATRIX) if a.facts.get("computed"))
    whole = {artifact.facts["shard_of"] for artifact in models if "shard_of" in artifact.facts}
    return (*(a for a in models if a.name not in whole), *matrices, *merged)


def local_target(context: StageContext) -> Path | None:
    """The output directory where it is a local one."""
    output_dir = context.request.output_dir
    return None if output_dir is None or is_remote(output_dir) else Path(output_dir)


def upload_destination(context: StageContext) -> S3Location | None:
    """Where the files are uploaded: an ``s3://`` output directory, else the configured bucket; never both."""
    storage = context.settings.storage
    output_dir = context.request.output_dir
    if output_dir is not None and is_remote(output_dir):
        return S3Location.parse(output_dir).child(context.job_id)
    if not context.request.upload or storage.bucket is None:
        return None
    return S3Location(storage.bucket, storage.prefix.strip("/")).child(context.job_id)


def check_free(context: StageContext, target: Path, name: str) -> None:
    """Refuse to replace a file of another job.

    Raises:
        PackagingError: ``output_exists``.
    """
    if not (target / name).exists() or context.request.overwrite or owner_of(target) == context.job_id:
        return
    raise PackagingError(
        ErrorCode.OUTPUT_EXISTS,
        f"{target / name} exists and is not of this job",
        fields={"path": str(target / name), "owner": owner_of(target)},
    )


class _Meter:
    """Adds up the bytes of all files for one progress bar."""

    def __init__(self, context: StageContext, total_bytes: int) -> None:
        self._report = context.report
        self._total = total_bytes
        self._done = 0

    def file(self, artifact: Artifact) -> Callable[[int], None]:
        """Progress callback for one file: bytes done of it."""
        before = self._done
        self._done += artifact.size_bytes

        def report(done_bytes: int) -> None:
            self._report.progress(before + done_bytes, self._total, "bytes", artifact.name)

        return report


def _place(context: StageContext, artifact: Artifact, target: Path, meter: _Meter) -> Artifact:
    final = target / artifact.name
    progress = meter.file(artifact)
    if not _same(final, artifact):
        check_free(context, target, artifact.name)
        final.parent.mkdir(exist_ok=True)
        place_file(Path(artifact.path), final)
    progress(artifact.size_bytes)
    return artifact.model_copy(update={"path": str(final)})


def _same(final: Path, artifact: Artifact) -> bool:
    return final.is_file() and final.stat().st_size == artifact.size_bytes and sha256_file(final) == artifact.sha256


class _Uploads:
    """The job's way to the storage: one client for all its files."""

    def __init__(self, context: StageContext, destination: S3Location) -> None:
        self._context = context
        self._destination = destination
        self._storage = S3Storage(context.settings.storage)

    def send(self, artifact: Artifact, report: Callable[[int], None] | None = None) -> Artifact:
        """Upload and verify one file; quick for what an earlier attempt has sent."""
        self._context.stop_point()
        location = self._destination.child(artifact.name)
        self._storage.upload_file(
            Path(artifact.path),
            location,
            sha256=artifact.sha256,
            report=report,
            should_stop=self._context.report.should_stop,
            keep_parts=self._context.retries_left,
        )
        self._context.report.log(f"Uploaded and verified {location}", url=str(location), size_bytes=artifact.size_bytes)
        return artifact.model_copy(update={"url": str(location)})


def _write_records(
    context: StageContext, files: Sequence[Artifact], target: Path | None, uploads: _Uploads | None
) -> list[Artifact]:
    """Write checksums and, last of all, the manifest; existing records of another job are kept, not lost."""
    directory = target if target is not None else context.scratch
    _keep_older_manifest(context, directory)
    records = []
    for name, kind, text in (
        (CHECKSUMS, ArtifactKind.CHECKSUMS, checksum_lines(directory, files)),
        (MANIFEST, ArtifactKind.MANIFEST, manifest_text(manifest(context, files))),
    ):
        path = directory / name
        atomic_write_text(path, text)
        record = Artifact(
            name=name, path=str(path), kind=kind, size_bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        records.append(record if uploads is None else uploads.send(record))
    return records


def _keep_older_manifest(context: StageContext, directory: Path) -> None:
    owner = owner_of(directory)
    if owner is not None and owner != context.job_id:
        (directory / MANIFEST).rename(directory / f"manifest-{owner}.json")

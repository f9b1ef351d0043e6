"""Publish: upload and verify the files, give them their final names, write checksums and manifest last.

Reads the artifacts of all stages. What may fail for long comes first, so that a failed or cancelled job leaves nothing
in the output directory. A file gets its final name by a hard link (a copy where the file system has none), so the
scratch copy stays until the job has succeeded and a replay finds its inputs. Safe to repeat: what is already there,
with the same size and sha256, stays. Jobs that share an output directory publish one after the other. The directory is
opened once, and all is done through the open one, so that a link put in its place leads nothing astray. A place that
``upload_to`` names comes last: where that fails, the local files are there, and a replay sends them.
Raises ``output_exists``, ``upload_failed``, ``storage_denied``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from api_client.contract.job import Artifact, ArtifactKind, StageName
from api_client.contract.outputs import CHECKSUMS, MANIFEST, QUALITY, OutputSpec, name_aside
from api_client.contract.request import is_remote
from api_client.s3 import S3Location
from worker.stages.companions import write_companions
from worker.stages.context import LeaseLost, StageContext, StageResult
from worker.stages.manifest import checksum_lines, digests, manifest, manifest_text
from worker.stages.ownership import check_free, check_records_free, owner_of, reporter_of
from worker.stages.targets import publish_to_target
from worker.storage.atomic import atomic_write_bytes, atomic_write_text, place_file
from worker.storage.checksums import format_checksums
from worker.storage.held import HeldDirectory
from worker.storage.locks import DirectoryLock
from worker.storage.paths import check_bucket, open_output_dir
from worker.storage.s3 import S3Storage


def run(context: StageContext) -> StageResult:
    """Publish every output of the job."""
    files = list(published_artifacts(context))
    files += write_companions(context, files)
    destination = upload_destination(context)
    ways = 1 + (destination is not None) + (context.request.upload_to is not None)
    total = sum(artifact.size_bytes for artifact in files) * ways
    meter = _Meter(context, total)
    uploads = None if destination is None else _Uploads(context, destination)
    if uploads is not None:
        files = [uploads.send(artifact, meter.file(artifact)) for artifact in files]
    context.stop_point()
    context.report.confirm()
    target = local_target(context)
    if target is None:
        files += _write_records(context, files, None, uploads)
    else:
        with open_output_dir(target, context.settings.allowed_roots) as directory, directory.told():
            lock = DirectoryLock(directory.here)
            if not lock.try_acquire():
                context.report.log(f"Waiting for another job to publish into {directory.path}")
                context.report.waits_to_publish(str(directory.path))
                lock.acquire(context.report.should_stop)
                context.report.waits_to_publish("")
            with lock:
                check_records_free(context, directory.here)
                files = _place_all(context, files, directory, meter)
                context.report.confirm()
                files += _write_records(context, files, directory, uploads)
    facts = publish_to_target(context, files, meter.file)
    context.report.log(f"Published {len(files)} files", output_dir=context.request.output_dir)
    return StageResult(tuple(files), facts)


def published_artifacts(context: StageContext) -> tuple[Artifact, ...]:
    """The files that go out: what the request keeps, a matrix only if computed, shards in place of a whole file."""
    kept = context.request.keep_unquantized or not context.options.quantize
    made = [artifact for artifact in context.artifacts(*StageName.PUBLISH.spec.reads) if artifact.is_computed]
    whole = {artifact.shard_of for artifact in made}
    return tuple(a for a in made if a.name not in whole and (kept or not _replaced_by_types(a)))


def _replaced_by_types(artifact: Artifact) -> bool:
    return artifact.kind is ArtifactKind.GGUF and artifact.part.is_quantized


def local_target(context: StageContext) -> Path | None:
    """The output directory where it is a local one."""
    output_dir = context.request.output_dir
    return None if output_dir is None or is_remote(output_dir) else Path(output_dir)


def upload_destination(context: StageContext) -> S3Location | None:
    """Where the files are uploaded: an ``s3://`` output directory, else the configured bucket; never both.

    Raises:
        PackagingError: ``path_not_allowed`` where jobs may not use the named bucket.
    """
    storage = context.settings.storage
    output_dir = context.request.output_dir
    if output_dir is not None and is_remote(output_dir):
        named = S3Location.parse(output_dir)
        check_bucket(named.bucket, context.settings.allowed_buckets, for_writing=True)
        return named.child(context.job_id)
    if not context.request.upload or storage.bucket is None:
        return None
    return S3Location(storage.bucket, storage.prefix.strip("/")).child(context.job_id)


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


def _place_all(
    context: StageContext, files: Sequence[Artifact], target: HeldDirectory, meter: _Meter
) -> list[Artifact]:
    """Give the files their final names; where that fails, those that are new go again."""
    new: list[Path] = []
    try:
        return [_place(context, artifact, target, meter, new) for artifact in files]
    except LeaseLost:
        raise  # they may be the newer attempt's
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def _place(
    context: StageContext, artifact: Artifact, target: HeldDirectory, meter: _Meter, new: list[Path]
) -> Artifact:
    final = target.file(artifact.name)
    progress = meter.file(artifact)
    if not artifact.is_whole(final):
        check_free(context, target.here, artifact.name, final)
        _keep_older_report(context, target.here, artifact.name)
        new += [] if final.exists() else [final]
        place_file(Path(artifact.path), final, report=progress, should_stop=context.report.should_stop)
    progress(artifact.size_bytes)
    return artifact.model_copy(update={"path": str(target.path / artifact.name)})


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
    context: StageContext, files: Sequence[Artifact], target: HeldDirectory | None, uploads: _Uploads | None
) -> list[Artifact]:
    """Write checksums and, last of all, the manifest; records of another job are kept, not lost.

    ``SHA256SUMS`` beside the files has the lines of all jobs of the directory, the uploaded one those of this job.
    """
    sums = _record(context, CHECKSUMS, format_checksums(digests(files)))
    record = _record(context, MANIFEST, manifest_text(manifest(context, files)))
    if target is not None:
        text = checksum_lines(target.here, files)
        atomic_write_bytes(target.here / CHECKSUMS.recipe, text.encode("utf-8", "surrogateescape"))
        sums = sums if uploads is not None else Artifact.of(target.here / CHECKSUMS.recipe, CHECKSUMS.kind)
    records = [sums, record] if uploads is None else [uploads.send(sums), uploads.send(record)]
    if target is not None:
        _keep_older_manifest(context, target.here)
        atomic_write_text(target.here / MANIFEST.recipe, Path(record.path).read_text("utf-8"))
        records = [record.model_copy(update={"path": str(target.path / record.name)}) for record in records]
    return records


def _record(context: StageContext, spec: OutputSpec, text: str) -> Artifact:
    path = context.scratch / spec.recipe
    atomic_write_text(path, text)
    return Artifact.of(path, spec.kind)


def _keep_older_manifest(context: StageContext, directory: Path) -> None:
    _keep_aside(context, directory, MANIFEST, owner_of(directory))


def _keep_older_report(context: StageContext, directory: Path, name: str) -> None:
    if name == QUALITY.recipe:
        _keep_aside(context, directory, QUALITY, reporter_of(directory, name))


def _keep_aside(context: StageContext, directory: Path, spec: OutputSpec, owner: str | None) -> None:
    """Give way to this job's file of the name, and take back what an earlier run of it had to give way with."""
    if owner is not None and owner != context.job_id:
        (directory / spec.recipe).rename(directory / name_aside(spec, owner))
    (directory / name_aside(spec, context.job_id)).unlink(missing_ok=True)

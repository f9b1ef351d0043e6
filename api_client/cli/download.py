"""Fetching a job's outputs: each file is written beside its final name, checked by its sha256, then renamed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from api_client.cli.output import Output
from api_client.contract.artifacts import arrived_changed
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, Job
from api_client.disk import write_errors
from api_client.s3 import Request, S3Location, object_blocks, settings_from_here
from api_client.words.formatting import one_line

_BLOCK_BYTES = 4 * 2**20
Advance = Callable[[int], None]


class Fetched(BaseModel):
    """One fetched file."""

    name: str
    path: str
    size_bytes: int
    sha256: str
    how: Literal["copied", "downloaded", "kept"]


def fetch_all(job: Job, directory: Path, output: Output, *, overwrite: bool) -> list[Fetched]:
    """Fetch every output of a job into a directory.

    Raises:
        PackagingError: ``request_invalid`` where the job has no outputs, ``output_exists``,
            ``output_dir_not_writable``, ``disk_space_insufficient``, ``download_failed``, ``storage_unreachable``,
            ``storage_denied``.
    """
    if not job.outputs:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"job {job.id} has no outputs: it is {job.state.value}",
            remedy=f"See why: trainpack status {job.id}." if job.finished else f"Wait for it: trainpack wait {job.id}.",
            fields={"job_id": job.id, "state": job.state.value},
        )
    with write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with _bar(output) as bar:
        return [_fetch(artifact, directory, overwrite, bar(artifact)) for artifact in job.outputs]


def _fetch(artifact: Artifact, directory: Path, overwrite: bool, advance: Advance) -> Fetched:
    target = directory / Path(artifact.name).name
    if target.exists() and _digest(target) == artifact.sha256:
        return _fetched(artifact, target, "kept")
    if target.exists() and not overwrite:
        raise PackagingError(
            ErrorCode.OUTPUT_EXISTS,
            f"{target} exists and is another file",
            remedy="Choose another directory, or give --overwrite.",
            fields={"path": str(target)},
        )
    source = Path(artifact.path)
    is_near = source.is_file() and source.stat().st_size == artifact.size_bytes
    partial = target.with_name(f".{target.name}.part")
    try:
        with write_errors(partial, artifact.size_bytes):
            digest = _copy(source, partial, advance) if is_near else _download(artifact, partial, advance)
        if digest != artifact.sha256:
            raise arrived_changed(artifact, digest)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return _fetched(artifact, target, "copied" if is_near else "downloaded")


def _copy(source: Path, target: Path, advance: Advance) -> str:
    with source.open("rb") as file:
        return _write(target, iter(lambda: file.read(_BLOCK_BYTES), b""), advance)


def _download(artifact: Artifact, target: Path, advance: Advance) -> str:
    if artifact.url is None or not artifact.url.startswith("s3://"):
        raise PackagingError(
            ErrorCode.DOWNLOAD_FAILED,
            f"{artifact.name} is not at {artifact.path} on this machine and was not uploaded",
            fields={"name": artifact.name, "path": artifact.path},
        )
    settings, source = settings_from_here(), S3Location.parse(artifact.url)
    request = Request(f"downloading {source}", ErrorCode.DOWNLOAD_FAILED, ErrorCode.DOWNLOAD_FAILED)
    return _write(target, object_blocks(source, settings, request), advance)


def _write(target: Path, blocks: Iterator[bytes], advance: Advance) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for block in blocks:
            file.write(block)
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetched(artifact: Artifact, path: Path, how: Literal["copied", "downloaded", "kept"]) -> Fetched:
    return Fetched(name=artifact.name, path=str(path), size_bytes=artifact.size_bytes, sha256=artifact.sha256, how=how)


@contextmanager
def _bar(output: Output) -> Iterator[Callable[[Artifact], Advance]]:
    """A bar per file on a terminal, nothing elsewhere."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=output.notes,
        disable=not output.live,
    )

    def start(artifact: Artifact) -> Advance:
        task = progress.add_task(one_line(artifact.name), total=artifact.size_bytes)
        return lambda size: progress.advance(task, size)

    with progress:
        yield start

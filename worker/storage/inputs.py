"""Inputs from anywhere: a local path is checked against policy, ``s3://`` and ``hf://`` are fetched into the cache.

Only data is fetched (``selection``), once per content (``cache``); a fetch that was cut off goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Protocol

from api_client.contract.errors import ErrorCode, PackagingError
from config.settings import StageSettings
from worker.stop import ShouldStop
from worker.storage.cache import Content, InputCache
from worker.storage.hub import download_revision, look_up
from worker.storage.paths import check_bucket
from worker.storage.s3 import ObjectInfo, S3Location, S3Storage
from worker.storage.selection import check_relative_name, wanted_names

_MISSING = {"base_model": ErrorCode.BASE_MODEL_NOT_FOUND, "checkpoint": ErrorCode.CHECKPOINT_NOT_FOUND}


class FetchReport(Protocol):
    """How a fetch says how far it is."""

    def __call__(self, done: float, total: float, unit: str, detail: str = "") -> None:
        """Take note; may be called often."""


def no_progress(done: float, total: float, unit: str, detail: str = "") -> None:
    """Say nothing."""


def fetch(
    location: str,
    settings: StageSettings,
    *,
    kind: str,
    report: FetchReport = no_progress,
    should_stop: ShouldStop | None = None,
    holder: Path | None = None,
) -> Path:
    """The local directory of an input.

    Args:
        location: A local path, ``s3://bucket/prefix`` or ``hf://owner/name[@revision]``.
        settings: Policy, storage, place and bound of the cache.
        kind: ``base_model`` or ``checkpoint``; decides the code where there is nothing.
        report: Told about bytes.
        should_stop: Asked often.
        holder: A path; what was fetched stays in the cache while it exists. The job's scratch directory is right; this
            process where not given.

    Returns:
        A local path resolved; else a directory that ends in the last two names of the location.

    Raises:
        PackagingError: ``path_not_allowed``, ``base_model_not_found``, ``checkpoint_not_found``, ``weights_pickled``,
            ``download_failed``, ``storage_unreachable``, ``storage_denied``, ``disk_space_insufficient``,
            ``request_invalid``.
        StopRequested: asked to stop; what has arrived stays for the next attempt.
    """
    task = _Fetch(settings, _MISSING[kind], report, should_stop, holder)
    if location.startswith("s3://"):
        return task.prefix(S3Location.parse(location))
    if location.startswith("hf://"):
        return task.model(location)
    return settings.allowed_roots.resolve(location)


def fetch_file(
    location: str,
    settings: StageSettings,
    *,
    missing: ErrorCode = ErrorCode.REQUEST_INVALID,
    report: FetchReport = no_progress,
    should_stop: ShouldStop | None = None,
    holder: Path | None = None,
) -> Path:
    """One local file: an importance matrix, a calibration text. ``s3://bucket/key`` is fetched.

    Args and errors are those of :func:`fetch`; ``missing`` is the code where there is no such file.
    """
    if location.startswith("hf://"):
        raise PackagingError(ErrorCode.REQUEST_INVALID, f"{location}: a single file comes from a local path or s3://")
    if not location.startswith("s3://"):
        path = settings.allowed_roots.resolve(location)
        if not path.is_file():
            raise PackagingError(missing, f"{location} is not a file", fields={"path": location})
        return path
    return _Fetch(settings, missing, report, should_stop, holder).object(S3Location.parse(location))


@dataclass(frozen=True)
class _Fetch:
    """One call of :func:`fetch` or :func:`fetch_file`."""

    settings: StageSettings
    missing: ErrorCode
    report: FetchReport
    should_stop: ShouldStop | None
    holder: Path | None

    def prefix(self, source: S3Location) -> Path:
        """All wanted objects below a prefix."""
        check_bucket(source.bucket, self.settings.allowed_buckets)
        storage = S3Storage(self.settings.storage)
        start = len(source.key) + 1 if source.key else 0
        listed = {stored.key[start:]: stored for stored in storage.list_objects(source, self.should_stop)}
        listed = {name: stored for name, stored in listed.items() if name and not name.endswith("/")}  # folder markers
        wanted = wanted_names(listed, str(source))
        if not wanted:
            raise self._nothing_in(str(source), listed)
        return self._objects(storage, source, _last_two_names(source), {name: listed[name] for name in wanted})

    def object(self, source: S3Location) -> Path:
        """A single object."""
        check_bucket(source.bucket, self.settings.allowed_buckets)
        storage = S3Storage(self.settings.storage)
        stored = storage.find(source)
        if stored is None:
            raise PackagingError(self.missing, f"{source} does not exist", fields={"url": str(source)})
        name = PurePosixPath(source.key).name
        check_relative_name(name, str(source))
        return self._objects(storage, source, PurePosixPath(), {name: stored}) / name

    def model(self, location: str) -> Path:
        """A model of the Hugging Face Hub, pinned to the commit that the location means now."""
        revision = look_up(location, self.missing)
        sizes = {file.name: file.size_bytes for file in revision.files}
        names = wanted_names(sizes, str(revision))
        if not names:
            raise self._nothing_in(str(revision), sizes)
        inner = PurePosixPath(revision.repo)
        content = _content(str(revision), inner, {name: sizes[name] for name in names}, repr((revision, names)))

        def fill(directory: Path) -> None:
            download_revision(
                revision,
                names,
                directory / inner,
                missing=self.missing,
                report=self._in_bytes,
                should_stop=self.should_stop,
            )

        return self._cached(content, fill) / inner

    def _objects(
        self, storage: S3Storage, source: S3Location, inner: PurePosixPath, wanted: dict[str, ObjectInfo]
    ) -> Path:
        sizes = {name: info.size_bytes for name, info in wanted.items()}
        content = _content(str(source), inner, sizes, repr((source.bucket, sorted(wanted.items(), key=itemgetter(0)))))

        def fill(directory: Path) -> None:
            targets = {info: directory / inner / name for name, info in wanted.items()}
            storage.download_objects(
                source.bucket, targets, missing=self.missing, report=self._in_bytes, should_stop=self.should_stop
            )

        return self._cached(content, fill) / inner

    def _cached(self, content: Content, fill: Callable[[Path], None]) -> Path:
        cache = InputCache(
            self.settings.cache_dir / "inputs",
            self.settings.input_cache_bytes,
            reserve_bytes=self.settings.disk_reserve_bytes,
        )
        return cache.get(content, fill, holder=self.holder, should_stop=self.should_stop)

    def _in_bytes(self, done: int, total: int, name: str) -> None:
        self.report(done, total, "bytes", name)

    def _nothing_in(self, source: str, names: Iterable[str]) -> PackagingError:
        first = sorted(names)[:3]
        what = f"none of the files that packaging reads, but {', '.join(first)}" if first else "no objects"
        return PackagingError(self.missing, f"{source} holds {what}", fields={"location": source})


def _content(source: str, inner: PurePosixPath, sizes: Mapping[str, int], identity: str) -> Content:
    files = {str(inner / name): size for name, size in sizes.items()}
    return Content(source, identity, sum(sizes.values()), files)


def _last_two_names(source: S3Location) -> PurePosixPath:
    """``run/checkpoint-900`` of a key: names of outputs come from them."""
    parts = PurePosixPath(source.key or source.bucket).parts[-2:]
    for part in parts:
        check_relative_name(part, str(source))
    return PurePosixPath(*parts)

"""Models of the Hugging Face Hub: what a revision holds, and its files.

Only here and in ``hub_upload`` is ``huggingface_hub`` met.

A revision is pinned to its commit first. Files are checked by the SHA-256 that the Hub keeps for large ones. The token
is looked for where ``huggingface_hub`` looks (``HF_TOKEN``, its login file); ``HF_ENDPOINT`` may name a mirror.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import write_error
from worker.stop import ShouldStop, StopRequested
from worker.storage.checksums import sha256_file
from worker.storage.parallel import run_parallel

_LOCATION = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_THREADS = 4
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class HubFile:
    """One file of a revision; ``sha256`` only for large files."""

    name: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class HubRevision:
    """A model at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit}"


def parse_hub_location(location: str) -> tuple[str, str | None]:
    """Repository and revision of ``hf://owner/name[@revision]``.

    Raises:
        PackagingError: ``request_invalid``.
    """
    match = _LOCATION.fullmatch(location)
    if match is None or ".." in location:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"{location} is not of the form hf://owner/name or hf://owner/name@revision",
            fields={"location": location},
        )
    return match["repo"], match["revision"]


def look_up(location: str, missing: ErrorCode) -> HubRevision:
    """Ask the Hub what a location holds now.

    Raises:
        PackagingError: ``missing`` for a model or revision that does not exist or is not open to this token;
            ``download_failed`` where the Hub does not answer; ``request_invalid``; ``dependency_missing``.
    """
    repo, revision = parse_hub_location(location)
    hub = hub_library()
    with _mapped(location, missing):
        info = hub.HfApi(endpoint=hub_endpoint()).model_info(
            repo, revision=revision, timeout=_TIMEOUT_S, files_metadata=True
        )
    files = tuple(
        HubFile(sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs is not None else None)
        for sibling in info.siblings or ()
    )
    return HubRevision(repo, str(info.sha), files)


def download_revision(
    revision: HubRevision,
    names: list[str],
    directory: Path,
    *,
    missing: ErrorCode,
    report: Callable[[int, int, str], None],
    should_stop: ShouldStop | None = None,
) -> None:
    """Bring files of a revision into a directory; goes on where an earlier call was cut off.

    Args:
        revision: The model at a commit.
        names: Which of its files.
        directory: Where they go, with their folders.
        missing: Code where the model has gone meanwhile.
        report: Called with bytes done, bytes in all, file name.
        should_stop: Asked with each block of bytes.

    Raises:
        PackagingError: ``missing``, ``download_failed``, ``disk_space_insufficient``.
        StopRequested: asked to stop; what has arrived stays.
    """
    files = [file for file in revision.files if file.name in set(names)]
    total = sum(file.size_bytes for file in files)
    meter = _Meter(total, report, should_stop)

    def fetch(file: HubFile) -> None:
        with _mapped(f"{revision}/{file.name}", missing):
            hub_library().hf_hub_download(
                revision.repo,
                file.name,
                revision=revision.commit,
                local_dir=directory,
                endpoint=hub_endpoint(),
                tqdm_class=meter.bar_class(file.name),
            )
        _check(directory / file.name, file, str(revision), should_stop)

    run_parallel(
        fetch, files, threads=_THREADS, abandoned=meter.abandoned, on_done=lambda _: None, should_stop=should_stop
    )
    report(total, total, "")
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # the library's own notes


class _Meter:
    """Adds up what the library's progress bars say, and ends downloads from within them."""

    def __init__(
        self, total_bytes: int, report: Callable[[int, int, str], None], should_stop: ShouldStop | None
    ) -> None:
        self.abandoned = threading.Event()
        self._total = total_bytes
        self._report = report
        self._should_stop = should_stop
        self._done = 0
        self._lock = threading.Lock()

    def add(self, size_bytes: int, name: str) -> None:
        if self.abandoned.is_set() or (self._should_stop is not None and self._should_stop()):
            raise StopRequested
        with self._lock:
            self._done = min(self._total, self._done + size_bytes)
            self._report(self._done, self._total, name)

    def bar_class(self, name: str) -> Any:
        """A class with the interface that the library expects of a progress bar."""
        base: Any = hub_library().utils.tqdm
        meter = self

        class Bar(base):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                meter.add(int(n or 0), name)
                return None

            def update_transfer(self, n: float) -> None:
                """Bytes on the wire, where the Hub sends deduplicated chunks; only those on the disk count."""

        return Bar


def _check(path: Path, file: HubFile, source: str, should_stop: ShouldStop | None) -> None:
    size = path.stat().st_size
    wrong = size != file.size_bytes
    if not wrong and file.sha256 is not None:
        wrong = sha256_file(path, should_stop=should_stop) != file.sha256
    if wrong:
        path.unlink()
        raise PackagingError(
            ErrorCode.DOWNLOAD_FAILED,
            f"{source}/{file.name} arrived changed: {size} bytes or their sha256 differ from what the Hub says",
            fields={"source": source, "name": file.name},
        )


@contextlib.contextmanager
def _mapped(what: str, missing: ErrorCode) -> Iterator[None]:
    from huggingface_hub import errors

    transport_error = hub_transport_error()
    try:
        yield
    except errors.GatedRepoError as error:
        raise PackagingError(
            missing,
            f"{what} is gated: access must be granted on the Hub",
            remedy="Ask for access on the model's page and set HF_TOKEN for the worker.",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise PackagingError(
            missing,
            f"{what} does not exist on the Hub, or is private",
            remedy="Correct the name or revision; for a private model set HF_TOKEN for the worker.",
        ) from error
    except (transport_error, OSError) as error:  # OSError: LocalEntryNotFoundError, OfflineModeIsEnabled, a full disk
        full = write_error(Path(what), error) if isinstance(error, OSError) and error.errno else None
        raise full or PackagingError(
            ErrorCode.DOWNLOAD_FAILED,
            f"{what}: the Hub at {hub_endpoint() or 'https://huggingface.co'} does not answer ({type(error).__name__})",
            remedy="Check the network, or give a local directory or s3:// location.",
            fields={"location": what},
        ) from error


def hub_transport_error() -> type[Exception]:
    """What the HTTP library raises that this version of the package is built on."""
    from huggingface_hub import errors

    base: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    return base


def hub_endpoint() -> str | None:
    """Address of a mirror, where one is set."""
    return os.environ.get("HF_ENDPOINT") or None


def hub_library() -> Any:
    """The package ``huggingface_hub``.

    Raises:
        PackagingError: ``dependency_missing``.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING, "huggingface_hub is not installed; it comes with trainpack[worker]"
        ) from error
    return huggingface_hub

"""Scratch directories: where they lie, whose process works in them, what goes when.

A job has one scratch directory per host. It outlives attempts, so that a later one resumes; it goes when the job has
succeeded or was cancelled, and some time after it failed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from api_client.contract.errors import PackagingError
from api_client.contract.request import PackagingRequest, is_remote
from api_client.disk import failed_write
from config.roots import Roots
from config.settings import Settings
from worker.service.supervisor.scratch_lock import LOCK_FILE
from worker.storage.held import HeldDirectory, hold, hold_in, hold_made, plain_opener, read_plain
from worker.storage.temporaries import remove_stale_temporaries

CREATED_FILE = ".created"
"""Names the topmost directory that was made for the scratch directory to lie in."""

_END_WAIT_S = 5.0
_LOCK_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def scratch_path(settings: Settings, job_id: str, request: PackagingRequest) -> Path:
    """Where a job works: the set directory, else beside local outputs (publishing is a rename then), else at home."""
    if settings.scratch_dir is not None:
        return settings.scratch_dir / job_id
    if _beside_outputs(settings, request):
        return Path(str(request.output_dir)) / f".trainpack-{job_id}"
    return settings.home / "scratch" / job_id


def scratch_roots(settings: Settings, request: PackagingRequest) -> Roots:
    """Directories scratch must lie under: the job's choice is bound by the allowed roots, the operator's is not."""
    return settings.allowed_roots if _beside_outputs(settings, request) else Roots.anywhere()


def _beside_outputs(settings: Settings, request: PackagingRequest) -> bool:
    return settings.scratch_dir is None and request.output_dir is not None and not is_remote(request.output_dir)


def make_scratch(path: Path, allowed_roots: Roots) -> None:
    """Create a job's scratch directory, and the directories above it where there are none.

    Args:
        path: The directory.
        allowed_roots: Where it must lie.

    Raises:
        PackagingError: ``path_not_allowed``, ``output_dir_not_writable``, ``disk_space_insufficient``.
    """
    allowed_roots.resolve(path.parent, for_writing=True)
    try:
        try:
            _create(path, allowed_roots)
        except FileNotFoundError:
            _create(path, allowed_roots)  # The directory of the ended job was removed just in between.
    except OSError as error:
        raise failed_write(path, error) from error


def _create(path: Path, allowed_roots: Roots) -> None:
    if path.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "is a link")
    with hold_made(path, allowed_roots) as held:
        os.close(os.open(LOCK_FILE, _LOCK_FLAGS, 0o644, dir_fd=held.descriptor))
        made_from = held.made_from
        if made_from is not None and made_from != held.path:
            with open(held.here / CREATED_FILE, "w", encoding="utf-8", opener=plain_opener) as file:
                file.write(str(made_from))


def end_predecessor(path: Path) -> int | None:
    """End the process of an older attempt that still works in ``path`` on this machine.

    It happens when its worker was stopped or cut off and another took over. Its group gets SIGKILL only where the
    process really holds the directory's lock file open, so a reused process id is not hit.

    Returns:
        The process id that was ended.
    """
    lock = path / LOCK_FILE
    try:
        pid = int(lock.read_text("ascii").strip() or 0)
        if not pid or not _holds(pid, lock):
            return None
        os.killpg(pid, signal.SIGKILL)
    except (OSError, ValueError, psutil.Error):
        return None
    deadline = time.monotonic() + _END_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
                continue
        break
    return pid


def _holds(pid: int, lock: Path) -> bool:
    wanted = lock.stat()
    descriptors = Path(f"/proc/{pid}/fd")
    for descriptor in descriptors.iterdir() if descriptors.is_dir() else ():
        with contextlib.suppress(OSError):
            held = descriptor.stat()
            if (held.st_dev, held.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


def remove_scratch(path: Path) -> None:
    """Remove a job's scratch directory with everything in it, and empty directories that were made for it."""
    topmost = None
    with contextlib.suppress(OSError, PackagingError):
        parent = hold(path.parent)
        with parent, hold_in(parent, path.name) as held:
            with contextlib.suppress(OSError):
                topmost = Path(read_plain(held.here / CREATED_FILE).decode("utf-8"))
            for entry in held.here.iterdir():
                if entry.name != LOCK_FILE:
                    _remove(entry.name, held)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(LOCK_FILE, dir_fd=held.descriptor)  # The last: who gets it finds nothing that is to go.
            os.rmdir(path.name, dir_fd=parent.descriptor)
    for above in path.parents if topmost else ():
        try:
            with hold(above.parent) as outer:
                os.rmdir(above.name, dir_fd=outer.descriptor)
        except (OSError, PackagingError):
            return
        if above == topmost:
            return


def _remove(name: str, held: HeldDirectory) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(name, dir_fd=held.descriptor).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=held.descriptor)
        else:
            os.unlink(name, dir_fd=held.descriptor)


def sweep_output(output_dir: str | None, names: Iterable[str]) -> None:
    """Remove the temporaries that an ended publish left beside its final names in a local output directory.

    Only those of the given names that no living writer holds a lock on.
    """
    if output_dir is None or is_remote(output_dir):
        return
    with contextlib.suppress(OSError, PackagingError), hold(Path(output_dir)) as held:
        for name in names:
            remove_stale_temporaries(held.here / name, age_s=0)

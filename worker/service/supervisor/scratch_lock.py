"""Who may change a scratch directory: whoever holds the lock on a file in it.

A stage's process holds it while it runs, and whoever removes files of an ended job holds it meanwhile. So a replay that
comes in the middle of the cleaning finds its directory either as it was or gone, and no file vanishes under it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from worker.storage.held import hold
from worker.storage.locks import is_still, try_lock

LOCK_FILE = ".lock"
"""Held with ``flock``; holds the id of the stage's process that locked it last."""

LOCK_WAIT_S = 30.0
"""How long an attempt waits for whoever works in its directory."""

_PAUSE_S = 0.05
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def acquire(scratch: Path, wait_s: float = 0, keep_going: Callable[[], bool] = lambda: True) -> int | None:
    """Hold a scratch directory.

    Args:
        scratch: The directory.
        wait_s: How long to wait for someone else to let it go.
        keep_going: Asked while waiting; ``False`` ends it early.

    Returns:
        A descriptor, which holds it until closed, or ``None`` where someone else does.

    Raises:
        FileNotFoundError: there is no such directory.
        PackagingError: ``path_not_allowed``: it is no place any more where this process may write.
    """
    path = scratch / LOCK_FILE
    deadline = time.monotonic() + wait_s
    while True:
        with hold(scratch) as held:
            descriptor = os.open(LOCK_FILE, _FLAGS, 0o644, dir_fd=held.descriptor)
        if try_lock(descriptor):
            if is_still(path, descriptor):
                return descriptor
            os.close(descriptor)  # The one before removed it with its directory: look again.
            continue
        os.close(descriptor)
        if time.monotonic() >= deadline or not keep_going():
            return None
        time.sleep(_PAUSE_S)


def still_used(scratch: Path) -> PackagingError:
    """Error of an attempt that waited in vain; another one may have more luck."""
    return PackagingError(ErrorCode.WORKER_LOST, f"another attempt still works in {scratch} after {LOCK_WAIT_S:g} s")

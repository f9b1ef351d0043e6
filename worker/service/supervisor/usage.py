"""How many bytes this process has moved to and from storage, and how much memory it had, as the kernel counts them."""

from __future__ import annotations

import resource
from pathlib import Path

_COUNTERS = Path("/proc/self/io")


def storage_bytes() -> tuple[int, int]:
    """Bytes read from and written to storage by this process and its ended children; zeros where nobody counts.

    What the page cache had is not read, memory maps are; what was written and removed before it came to a disk counts
    as written.
    """
    try:
        fields = dict(line.split(": ", 1) for line in _COUNTERS.read_text("ascii").splitlines())
        return int(fields["read_bytes"]), int(fields["write_bytes"])
    except (OSError, ValueError, KeyError):
        return 0, 0


def peak_memory_bytes() -> int:
    """Most resident memory of this process, or of one of its ended children; mapped files count as far as in memory."""
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(process).ru_maxrss for process in processes) * 1024


class Usage:
    """What was moved since the last look."""

    def __init__(self) -> None:
        self._seen = (0, 0)

    def since(self) -> tuple[int, int]:
        """Bytes read and written since the last call; the first one counts from the process's start."""
        now, before = storage_bytes(), self._seen
        self._seen = now
        return now[0] - before[0], now[1] - before[1]

"""How loaded a host is, and the room on its disk, for the worker's record: looked up aside, for a disk may hang."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from api_client.disk import disk_room


@dataclass(frozen=True)
class HostFigures:
    """What was last seen of a host.

    Attributes:
        load: Processes that want to run, a minute's mean, for each core.
        disk_free_bytes: Room on the disk of the worker's own directory.
        disk_total_bytes: Size of that disk.
    """

    load: float | None = None
    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None


class HostLoad:
    """Looks in a thread of its own, one look at a time; whoever asks gets what the last look saw.

    Args:
        directory: A directory on the disk that is told of, which need not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._figures = HostFigures()
        self._looking = threading.Lock()

    def figures(self) -> HostFigures:
        """The last figures; a new look begins where none is under way. Never waits."""
        if self._looking.acquire(blocking=False):
            threading.Thread(target=self._look, name="host-load", daemon=True).start()
        return self._figures

    def _look(self) -> None:
        try:
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            self._figures = HostFigures(load, *disk_room(self._directory))
        except OSError:  # what is not known is not told
            self._figures = HostFigures()
        finally:
            self._looking.release()

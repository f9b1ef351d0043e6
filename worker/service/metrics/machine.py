"""What is so at the moment of a scrape: the worker itself, its disks, its GPUs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api_client.contract import metric_names as names
from api_client.contract.job import StageName
from api_client.metric_families import gauge
from config.settings import Settings
from worker.service.metrics.gpus import GpuProbe
from worker.service.metrics.observer import Observer


@dataclass(frozen=True)
class WorkerFacts:
    """What does not change while the worker runs."""

    worker: str
    host: str
    version: str
    device: str
    slots: int
    lease_s: float
    disks: tuple[Path, ...]


class MachineCollector(Collector):
    """Gauges of one worker."""

    def __init__(
        self, facts: WorkerFacts, observer: Observer, draining: Callable[[], bool], gpus: GpuProbe | None = None
    ) -> None:
        self._facts = facts
        self._observer = observer
        self._draining = draining
        self._gpus = gpus or GpuProbe()

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing beforehand: registering must not ask the disks."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        facts = self._facts
        info = (facts.worker, facts.host, facts.version, facts.device)
        yield gauge(names.WORKER_INFO, [(info, 1)])
        yield gauge(names.WORKER_SLOTS, [((), facts.slots)])
        yield gauge(names.WORKER_LEASE, [((), facts.lease_s)])
        yield gauge(names.WORKER_DRAINING, [((), self._draining())])
        running = self._observer.running
        yield gauge(names.WORKER_RUNNING, [((stage.value,), running[stage]) for stage in StageName])
        yield from self._disks()
        yield from self._gpu_use()

    def _disks(self) -> Iterator[GaugeMetricFamily]:
        usage = [(str(path), shutil.disk_usage(path)) for path in one_per_file_system(self._facts.disks)]
        yield gauge(names.SCRATCH_FREE, [((path,), use.free) for path, use in usage])
        yield gauge(names.SCRATCH_TOTAL, [((path,), use.total) for path, use in usage])

    def _gpu_use(self) -> Iterator[GaugeMetricFamily]:
        gpus = self._gpus.read()
        for row, field in (
            (names.GPU_UTILIZATION, "utilization"),
            (names.GPU_MEMORY_USED, "used_bytes"),
            (names.GPU_MEMORY_TOTAL, "total_bytes"),
        ):
            known = [((gpu.index, gpu.model), getattr(gpu, field)) for gpu in gpus]
            yield gauge(row, [(labels, value) for labels, value in known if value is not None])


def scratch_disks(settings: Settings) -> tuple[Path, ...]:
    """Directories on whose file systems stages may work: the scratch directory, or where outputs may go, and home."""
    beside_outputs = () if settings.scratch_dir else settings.allowed_roots.directories
    return tuple(path for path in (settings.scratch_dir, *beside_outputs, settings.home) if path is not None)


def one_per_file_system(paths: Sequence[Path]) -> list[Path]:
    """The first path on each file system; for one that does not exist yet its nearest existing parent."""
    by_device: dict[int, Path] = {}
    for path in paths:
        place = next((p for p in (path, *path.parents) if p.exists()), None)
        if place is not None:
            by_device.setdefault(place.stat().st_dev, place)
    return [*by_device.values()]

"""The table of metrics: its names, and that each exporter exports exactly its rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api_client.contract.metric_names import METRICS, Exporter, MetricType
from worker.service.metrics.gpus import GpuProbe
from worker.service.metrics.machine import MachineCollector, WorkerFacts, one_per_file_system
from worker.service.metrics.observer import Observer

GPU_METRICS = {name for name in METRICS if "_gpu_" in name}


@pytest.mark.parametrize("row", METRICS.values(), ids=METRICS)
def test_names_follow_the_conventions(row: Any) -> None:
    assert re.fullmatch(r"trainpack_[a-z_]+", row.name)
    assert row.name.endswith("_total") == (row.type is MetricType.COUNTER)
    assert bool(row.buckets) == (row.type is MetricType.HISTOGRAM)
    assert [*row.buckets] == sorted(row.buckets)
    assert row.help.endswith(".")
    assert not {"job_id", "job", "instance"} & {*row.labels}, "one series per job would never end"


def test_a_worker_exports_its_rows_and_no_others(tmp_path: Path) -> None:
    observer = Observer()
    facts = WorkerFacts("w", "h", "1", "cpu", slots=2, lease_s=30, disks=(tmp_path / "not" / "yet",))
    registry = observer.series.registry
    registry.register(MachineCollector(facts, observer, lambda: False, GpuProbe("no-such-program")))
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
    exported = {name for name in families if name.startswith("trainpack_")}
    rows = [row for row in METRICS.values() if row.exporter is Exporter.WORKER]
    assert exported == {row.name.removesuffix("_total") for row in rows}
    for row in rows:
        family = families[row.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (row.type.value, row.help)
        assert all({*row.labels} <= {*sample.labels} for sample in family.samples)
    # Where no GPU is, no figure is made up.
    assert {name for name in GPU_METRICS if families[name].samples} == set()


def test_paths_on_one_file_system_count_once(tmp_path: Path) -> None:
    assert one_per_file_system([tmp_path / "a" / "b", tmp_path, Path("/proc")]) == [tmp_path, Path("/proc")]

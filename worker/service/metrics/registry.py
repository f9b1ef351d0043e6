"""The series of one worker, made from the table of ``api_client.contract.metric_names``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

from api_client.contract.metric_names import METRICS, Exporter, Metric, MetricType


class Series:
    """Counters and histograms of one worker, in a registry of its own (so that tests and workers do not share any)."""

    def __init__(self) -> None:
        # For the whole process: a series more for each series, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = [row for row in METRICS.values() if row.exporter is Exporter.WORKER]
        self._counters = {
            row: Counter(row.name, row.help, row.labels, registry=self.registry)
            for row in own
            if row.type is MetricType.COUNTER
        }
        self._histograms = {
            row: Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=self.registry)
            for row in own
            if row.type is MetricType.HISTOGRAM
        }

    def add(self, row: Metric, amount: float = 1, **labels: str) -> None:
        """Count; an amount of 0 makes the series appear, so that rules see its first increase."""
        counter = self._counters[row]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def observe(self, row: Metric, value: float, **labels: str) -> None:
        """Note one value."""
        histogram = self._histograms[row]
        (histogram.labels(**labels) if labels else histogram).observe(value)

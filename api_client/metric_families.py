"""Gauges made from the table of ``metric_names``, for collectors that look when asked. Needs prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily

from api_client.contract.metric_names import Metric


def gauge(row: Metric, values: Iterable[tuple[Sequence[str], float]]) -> GaugeMetricFamily:
    """A gauge of the table with these values, each under the values of its labels."""
    family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
    for labels, value in values:
        family.add_metric(labels, float(value))
    return family

"""``/metrics`` of the console: the whole installation as Redis has it, read anew for every scrape.

A scrape costs a handful of round trips, however many jobs there are: it reads sizes of indexes, never jobs. Needs a
token with the role ``read`` (Prometheus: ``authorization: {credentials_file: ...}``), like every other route.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api_client.client import PackagingClient
from api_client.console.auth import require
from api_client.console.context import Client
from api_client.console.identity import Principal
from api_client.console.roles import Role
from api_client.contract import metric_names as names
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fleet import QueueInfo, WorkerInfo
from api_client.contract.waiting import WaitReason
from api_client.ledger.counts import Counts
from api_client.ledger.writes import WriteRefusal
from api_client.metric_families import gauge

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
def metrics(client: Client, _: Annotated[Principal, Depends(require(Role.READ))]) -> Response:
    """The metrics, in Prometheus's text format."""
    return Response(metrics_text(client), media_type=CONTENT_TYPE_LATEST)


def metrics_text(client: PackagingClient) -> bytes:
    """What a scrape answers."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(ServiceCollector(client))
    return generate_latest(registry)


class ServiceCollector(Collector):
    """Gauges of the installation. With Redis away it says so, and nothing else; without writes it says why."""

    def __init__(self, client: PackagingClient) -> None:
        self._client = client

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing beforehand: registering must not ask Redis."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        try:
            families, refusal = [*self._families()], self._client.ping().refuses_writes
        except PackagingError as error:
            if error.code is not ErrorCode.REDIS_UNREACHABLE:
                raise
            families, refusal = [], ""
        yield gauge(names.REDIS_UP, [((), bool(families) and not refusal)])
        if families:
            yield gauge(names.REDIS_REFUSES, [((known.value,), int(known == refusal)) for known in WriteRefusal])
        yield from families

    def _families(self) -> Iterator[GaugeMetricFamily]:
        counts, workers, queues = self._client.counts(), self._client.workers(), self._client.queues()
        yield gauge(names.JOBS, [((state.value, template), n) for (state, template), n in counts.jobs.items()])
        yield gauge(names.QUEUE_MESSAGES, [((queue.name,), queue.waiting) for queue in queues])
        yield gauge(names.QUEUE_STAGES, [((queue.name,), queue.due) for queue in queues])
        yield gauge(names.QUEUE_OLDEST, [((queue.name,), queue.oldest_s or 0.0) for queue in queues])
        taking = [worker for worker in workers if not worker.draining]
        served = [((queue.name,), sum(queue.name in worker.queues for worker in taking)) for queue in queues]
        yield gauge(names.QUEUE_WORKERS, served)
        yield gauge(names.STAGES_WAITING, _waiting(counts, queues))
        yield gauge(names.QUEUE_PAUSED, [((queue.name,), int(queue.paused)) for queue in queues])
        yield gauge(names.STAGES_DELAYED, [((), counts.delayed)])
        yield gauge(names.LEASES, [((), counts.leases)])
        yield gauge(names.LEASES_OVERDUE, [((), counts.leases_overdue)])
        yield gauge(names.CALLBACKS_PENDING, [((), counts.callbacks)])
        yield gauge(names.WORKER_SLOTS_TOTAL, [((), sum(worker.slots for worker in taking))])
        yield from _worker_families(workers, counts.at)


def _waiting(counts: Counts, queues: Sequence[QueueInfo]) -> list[tuple[tuple[str], float]]:
    """How many stages wait for each reason."""
    by_reason = dict.fromkeys(WaitReason, 0) | counts.held
    by_reason[WaitReason.RETRY_AT] += counts.delayed
    for queue in queues:
        if queue.waiting_for is not None:
            by_reason[queue.waiting_for] += queue.due
    return [((reason.value,), number) for reason, number in by_reason.items()]


def _worker_families(workers: Sequence[WorkerInfo], now: datetime) -> Iterator[GaugeMetricFamily]:
    groups: dict[tuple[str, str], int] = {}
    for worker in workers:
        group = (worker.host, str(worker.draining).lower())
        groups[group] = groups.get(group, 0) + 1
    yield gauge(names.WORKERS, groups.items())
    ages = [((w.name, w.host), max(0.0, (now - w.last_heartbeat_at).total_seconds())) for w in workers]
    yield gauge(names.HEARTBEAT_AGE, ages)

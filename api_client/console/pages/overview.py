"""The overview: throughput, failures, waiting and durations over the last day and week, hosts and their disks."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api_client.client import PackagingClient
from api_client.console.context import Client
from api_client.console.pages.figures import (
    DAY,
    HOUR,
    WEEK,
    Quantiles,
    failures,
    hosts,
    queue_wait,
    stage_times,
    throughput,
)
from api_client.console.pages.jobs import Reader
from api_client.console.pages.view import render
from api_client.contract.stages import StageName

SAMPLE: Final = 300
"""Jobs of the last week, the newest that ended, whose stages the durations are taken from."""
KEPT_S: Final = 30.0

router = APIRouter(include_in_schema=False)


class StageTimes:
    """Durations by stage; they change slowly and cost a read of every job of the sample, so they are kept a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._kept: tuple[int, list[tuple[StageName, Quantiles]]] = (0, [])

    def read(self, client: PackagingClient, now: datetime) -> tuple[int, list[tuple[StageName, Quantiles]]]:
        """How many jobs were looked at, and the durations."""
        with self._lock:
            if time.monotonic() >= self._until:
                oldest_ms = (now - WEEK).timestamp() * 1000
                ended = [summary for summary in client.summaries() if (summary.ended_ms or 0) >= oldest_ms]
                newest = sorted(ended, key=lambda summary: summary.ended_ms or 0, reverse=True)[:SAMPLE]
                jobs = client.read_many([summary.id for summary in newest])
                self._kept, self._until = (len(jobs), stage_times(jobs)), time.monotonic() + KEPT_S
            return self._kept


@router.get("/overview")
def overview_page(request: Request, client: Client, _: Reader) -> Response:
    """How the service has done."""
    state = request.app.state
    if not hasattr(state, "stage_times"):
        state.stage_times = StageTimes()
    now, summaries = datetime.now(UTC), client.summaries()
    looked_at, times = state.stage_times.read(client, now)
    context: dict[str, Any] = {
        "spans": [
            ("last_day", throughput(summaries, HOUR, 24, now)),
            ("last_week", throughput(summaries, DAY, 7, now)),
        ],
        "waits": [("last_day", queue_wait(summaries, DAY, now)), ("last_week", queue_wait(summaries, WEEK, now))],
        "codes": failures(summaries, now),
        "times": times,
        "looked_at": looked_at,
        "longest": max((seconds.most for _, seconds in times), default=0.0) or 1.0,
        "hosts": hosts(client.workers()),
    }
    return render(request, "overview.html", context)

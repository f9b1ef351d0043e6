"""Stages that take a known time, for ``scaleout``: ``quantize`` waits or computes as the job's labels say."""

from __future__ import annotations

import time
from pathlib import Path

from api_client.contract.job import StageName
from worker.stages.context import StageContext, StageResult

STAGES = dict.fromkeys(StageName, "tests.bench.timed_stages:run")


def run(context: StageContext) -> StageResult:
    """One stage."""
    Path(str(context.request.output_dir)).mkdir(parents=True, exist_ok=True)
    if context.stage is StageName.QUANTIZE:
        seconds = float(context.request.labels["seconds"])
        WORK[context.request.labels["work"]](seconds)
    return StageResult()


def wait(seconds: float) -> None:
    """What a stage does that reads or uploads: a core is free meanwhile."""
    time.sleep(seconds)


def compute(seconds: float) -> None:
    """What a stage does that quantizes: seconds of one core."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(10_000))


WORK = {"wait": wait, "compute": compute}

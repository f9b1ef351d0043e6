"""Run a job's stages in this process, without queue or Redis: what the seam between stages and plumbing is for."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from api_client.contract.job import StageName
from api_client.contract.plan import plan_stages
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request
from config.settings import StageSettings, load_settings
from worker.stages.context import StageContext, StageInput, StageResult
from worker.stages.handover import checked_result, handed_over
from worker.stages.registry import STAGES


@dataclass
class RecordingReporter:
    """Keeps what a stage says; stops or refuses when told to."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    steps: list[tuple[float, float, str]] = field(default_factory=list)
    stop: Callable[[], bool] = lambda: False
    on_confirm: Callable[[], None] = lambda: None

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        """Keep a line."""
        self.lines.append((level, message))

    def progress(self, done: float, total: float, unit: str, detail: str = "") -> None:
        """Keep a step."""
        self.steps.append((done, total, unit))

    def waits_to_publish(self, directory: str) -> None:
        """Nobody is told."""

    def should_stop(self) -> bool:
        """As told."""
        return self.stop()

    def confirm(self) -> None:
        """As told."""
        self.on_confirm()


def stage_settings(home: Path, **overrides: Any) -> StageSettings:
    """Settings of a machine without object storage."""
    return load_settings({}, home=home, **overrides).for_stages()


def run_stages(
    request: PackagingRequest,
    scratch: Path,
    *,
    until: StageName = StageName.PUBLISH,
    settings: StageSettings | None = None,
    reporter: RecordingReporter | None = None,
    done: Mapping[StageName, StageResult] | None = None,
    job_id: str = "20260101-000000-aaaaaa",
) -> dict[StageName, StageResult]:
    """Run the plan up to and including a stage; stages in ``done`` are taken over."""
    request, options = resolve_request(request)
    plan = plan_stages(request, options)
    scratch.mkdir(parents=True, exist_ok=True)
    results = dict(done or {})
    for stage in plan:
        if stage not in results:
            told = StageInput(
                job_id=job_id,
                stage=stage,
                attempt=1,
                request=request,
                options=options,
                plan=plan,
                done=handed_over(stage, results),
                scratch=scratch,
                settings=settings or stage_settings(scratch / "home"),
            )
            context = StageContext.of(told, reporter or RecordingReporter())
            module, function = STAGES[stage].split(":")
            started = time.monotonic()
            result = checked_result(stage, getattr(importlib.import_module(module), function)(context))
            results = results | {stage: replace(result, duration_s=time.monotonic() - started)}
        if stage is until:
            break
    return results

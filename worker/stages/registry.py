"""Which function runs which stage. Names, so that the worker process never imports the stages themselves."""

from __future__ import annotations

from api_client.contract.job import StageName

STAGES: dict[StageName, str] = {stage: f"worker.stages.{stage.value}:run" for stage in StageName}

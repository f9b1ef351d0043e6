"""Which function runs which stage. Names, so that the worker process never imports the stages themselves."""

from __future__ import annotations

from api_client.job import StageName

STAGES: dict[StageName, str] = {
    StageName.PREPARE: "worker.stages.prepare:run",
    StageName.MERGE: "worker.stages.merge:run",
    StageName.CONVERT: "worker.stages.convert:run",
    StageName.IMATRIX: "worker.stages.imatrix:run",
    StageName.QUANTIZE: "worker.stages.quantize:run",
    StageName.EXPORT_LORA: "worker.stages.export_lora:run",
    StageName.VERIFY: "worker.stages.verify:run",
    StageName.PUBLISH: "worker.stages.publish:run",
}

"""A job that the first version began is finished by this one: what its prepare stored is read as it was stored then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from api_client import Job, JobState, StageName
from tests.integration.harness import REAL_STAGES, Installation
from tests.tiny import tiny_base, tiny_checkpoint

REAL = REAL_STAGES | {"verify_load": False}


def old_form(base: Path, checkpoint: Path) -> dict[str, Any]:
    """Facts of prepare, field by field as that version wrote them."""
    return {
        "base_dir": str(base),
        "base_name": base.name,
        "adapter_dir": str(checkpoint),
        "adapter_base": str(base),
        "checkpoint_dir": str(checkpoint),
        "checkpoint_name": checkpoint.name,
        "tokenizer_dir": str(base),
        "architecture": "LlamaForCausalLM",
        "inputs": {"base_model": {"name": base.name}},
        "imatrix": {},
        "predicted_bytes": {"merged_model.gguf": 1},
    }


def ended(service: Installation, job: Job) -> Job:
    job = service.wait(job, 180)
    assert job.state is JobState.SUCCEEDED, job.error
    return job


def test_a_job_whose_prepare_ran_in_the_first_version_is_finished(service: Installation, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    checkpoint = tiny_checkpoint(base, tmp_path / "run")
    link = tmp_path / "link"
    link.symlink_to(base)
    service.start_worker(**REAL)
    job = ended(service, service.submit("out", base_model=str(link), checkpoint=str(checkpoint), quant_types=["Q8_0"]))
    digests = {artifact.name: artifact.sha256 for artifact in job.outputs if artifact.kind.is_model}
    facts = json.dumps(old_form(base, checkpoint))
    service.redis.hset(service.keys.stages(job.id), "prepare:facts", facts)
    for name in digests:
        service.path(name).unlink()
    service.client.replay(job.id, from_stage="merge")
    job = ended(service, job)
    assert job.stage(StageName.PREPARE).attempt == 1, "prepare did not run again"
    assert {artifact.name: artifact.sha256 for artifact in job.outputs if artifact.kind.is_model} == digests
    manifest = json.loads(service.path("manifest.json").read_text())
    assert manifest["inputs"] == {"base_model": {"name": "base"}}
    del manifest["request"]
    assert str(tmp_path) not in json.dumps(manifest), "also what that version stored is not published"


def test_a_job_planned_before_evaluation_was_the_default_has_none(service: Installation) -> None:
    job = service.submit()
    plan = [stage.value for stage in job.plan if stage is not StageName.EVALUATE]
    service.redis.hset(service.keys.job(job.id), "plan", json.dumps(plan))
    assert service.client.get(job.id).request.evaluation.level == "off"
    service.start_worker()
    job = ended(service, job)
    assert [line.split()[1] for line in service.runs() if line.startswith("start")] == plan
    service.assert_settled(job)
    again = ended(service, service.client.replay(job.id, from_stage="prepare"))
    assert again.plan == job.plan

"""Texts of any length, from a file or a producer, through the real service: Redis keeps little of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from api_client import ErrorCode, JobState, PackagingError, PackagingRequest
from api_client.contract.byte_bounds import REQUEST_BYTES
from tests.integration.harness import Installation
from tests.tiny import tiny_base

pytestmark = pytest.mark.integration
NAME_BYTES = 20_000_000
JOB_BYTES = 1_000_000


def rename_a_tensor(model: Path, name: str) -> None:
    raw = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    key = [each for each in header if each != "__metadata__"][3]
    header[name] = header.pop(key)
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def memory_of(service: Installation, job_id: str) -> int:
    keys = service.keys
    names = (keys.job(job_id), keys.stages(job_id), keys.attempts(job_id), keys.events(job_id))
    return sum(service.redis.memory_usage(name, samples=0) or 0 for name in names)


def test_a_tensor_name_of_twenty_million_letters(service: Installation, tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "model")
    rename_a_tensor(model, "model." + "B" * NAME_BYTES)
    service.start_worker(stage_registry="worker.stages.registry:STAGES", preload="worker.service.preload")
    request = PackagingRequest(template="quantize_base", base_model=str(model), output_dir=str(tmp_path / "out"))
    job = service.client.wait(service.client.submit(request).id, 180)
    assert job.state is JobState.FAILED
    assert memory_of(service, job.id) < JOB_BYTES
    assert len(json.dumps(job.model_dump(mode="json"))) < JOB_BYTES


def test_what_stages_say_is_kept_short(service: Installation) -> None:
    service.start_worker(events_bytes=2**18)
    job = service.submit(labels={"merge": "shout:200", "convert": "tell"})
    job = service.wait(job, 60)
    assert job.state is JobState.SUCCEEDED
    assert memory_of(service, job.id) < JOB_BYTES
    events = list(service.client.events(job.id))
    assert events[-1].message == "Job succeeded"
    assert max(len(event.model_dump_json()) for event in events) < 30_000


def test_a_request_that_is_too_long_is_refused_at_once(service: Installation) -> None:
    task = {
        "task_id": "t" * REQUEST_BYTES,
        "status": "completed",
        "base_model": "/models/base",
        "output_dir": "/runs/1",
    }
    with pytest.raises(PackagingError) as caught:
        service.submit(task=task)
    assert caught.value.code is ErrorCode.REQUEST_INVALID
    assert str(REQUEST_BYTES) in caught.value.message
    assert service.client.list() == []

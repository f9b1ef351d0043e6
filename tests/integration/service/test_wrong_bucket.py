"""A bucket that does not exist is told alike, whichever way a job or a person comes to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_client import AttemptOutcome, JobState, PackagingRequest
from tests.integration.harness import Installation, outcomes
from worker.local.embedded.stack import Stack
from worker.local.embedded.state import StackInfo


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackInfo]:
    """A real SeaweedFS."""
    with Stack(tmp_path_factory.mktemp("storage"), workers=0) as running:
        yield running.info


def test_a_word_and_a_name_in_a_wrong_bucket_fail_alike_and_at_once(service: Installation, stack: StackInfo) -> None:
    service.start_worker(
        stage_registry="worker.stages.registry:STAGES",
        preload="",
        max_retries=2,
        s3_endpoint_url=stack.endpoint_url,
        s3_access_key=stack.access_key,
        s3_secret_key=stack.secret_key,
        s3_bucket=stack.bucket,
    )
    output = service.directory / "package"
    jobs = [
        service.client.submit(
            PackagingRequest(base_model="/models/base", checkpoint=f"s3://wrong/run/{name}", output_dir=str(output))
        )
        for name in ("latest", "best", "checkpoint-9")
    ]
    ended = [service.wait(job, 120) for job in jobs]
    assert [job.state for job in ended] == [JobState.FAILED] * 3
    assert [(job.error or {}).get("code") for job in ended] == ["storage_denied"] * 3
    assert [outcomes(job, "prepare") for job in ended] == [[AttemptOutcome.FAILED]] * 3


def test_the_command_line_says_the_same(stack: StackInfo, tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "TRAINPACK_HOME": str(tmp_path),
        "TRAINPACK_S3_ENDPOINT_URL": stack.endpoint_url,
        "TRAINPACK_S3_ACCESS_KEY": stack.access_key,
        "TRAINPACK_S3_SECRET_KEY": stack.secret_key,
    }
    command = [sys.executable, "-m", "api_client.cli", "checkpoints", "s3://wrong/run", "--json"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert json.loads(said.stdout)["error"]["code"] == "storage_denied", said.stderr

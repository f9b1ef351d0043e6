"""The OpenAPI document against the running service: generated requests, right and wrong, a fixed seed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.console.running import SECRETS, RunningConsole, running_console
from tests.integration.harness import Installation

pytestmark = pytest.mark.integration

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ignored_auth",
)


@pytest.fixture
def walled(service: Installation, tmp_path: Path) -> Iterator[RunningConsole]:
    """A service of its own, whose worker reads and writes nothing outside the test's directory."""
    service.start_worker(allowed_roots=tmp_path)
    with running_console(service.url, service.prefix) as console:
        yield console


def test_the_service_answers_as_its_document_says(
    walled: RunningConsole, service: Installation, tmp_path: Path
) -> None:
    job = service.wait(service.submit())
    known = f'[parameters]\n"path.job_id" = "{job.id}"\n"path.name" = "merged_model.gguf"\n'
    (tmp_path / "schemathesis.toml").write_text(known)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{walled.url}/api/v1/openapi.json"),
            *("--header", f"Authorization: Bearer {SECRETS['operate']}"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--seed", "7", "--max-examples", "12", "--continue-on-failure", "--no-shrink"),
            *("--request-timeout", "20", "--generation-database", "none"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr

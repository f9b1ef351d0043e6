"""What a job publishes names no path of the machine but those that its request gave."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from api_client import Job, JobState, PackagingClient, PackagingRequest
from api_client.s3 import S3Location
from tests.integration.harness import eventually
from tests.tiny import tiny_base, tiny_checkpoint
from worker.local.embedded.stack import Stack
from worker.storage.s3 import S3Storage

pytestmark = pytest.mark.integration


def texts(directory: Path) -> dict[str, str]:
    """Every text file below a directory."""
    found = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if b"\0" not in data:
            found[str(path.relative_to(directory))] = data.decode()
    return found


def paths_in(text: str, given: list[str]) -> list[str]:
    """Absolute paths in a text that a machine might have, without those that were given."""
    for path in sorted(given, key=len, reverse=True):
        text = re.sub(re.escape(path) + r"(?![\w./-])", "GIVEN", text)
    roots = [str(Path(root)) for root in ("/tmp", Path.home(), sys.prefix, Path(__file__).parents[2])]
    return [line for line in text.split('"') if any(root in line for root in roots)]


def finished(stack: Stack, request: PackagingRequest) -> Job:
    with PackagingClient(stack.info.redis_url) as client:
        job = client.wait(client.submit(request).id, timeout=180)
    assert job.state is JobState.SUCCEEDED, job.error
    return job


@pytest.mark.parametrize("base_from", ["a symlink", "object storage"])
def test_no_published_text_names_a_path_that_the_request_did_not_give(
    stack: Stack, tmp_path: Path, base_from: str
) -> None:
    base = tiny_base(tmp_path / "disk 7" / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_file": str(base / "tokenizer.json")}))
    checkpoint = tiny_checkpoint(base, tmp_path / "run")
    location = str(tmp_path / "models" / "base")
    if base_from == "a symlink":
        Path(location).parent.mkdir()
        Path(location).symlink_to(base)
    else:
        bucket = S3Location(stack.info.bucket, "models/base")
        for file in base.iterdir():
            S3Storage(stack.info.storage()).upload_file(file, bucket.child(file.name))
        location = str(bucket)
    output = tmp_path / "package"
    request = PackagingRequest(
        base_model=location,
        checkpoint=checkpoint,
        output_dir=output,
        companions=True,
        save_merged=True,
        quant_types=["Q8_0"],
        imatrix={"chunks": 1},
    )
    job = finished(stack, request)
    eventually((output / "events.jsonl").exists, "the log is kept")
    eventually(lambda: not list(output.glob(".trainpack-*")), "the scratch directory is gone")
    given = [location, str(checkpoint), str(output)]
    published = texts(output)
    expected = {"manifest.json", "README.md", "Modelfile", "SHA256SUMS", "events.jsonl", "merged_model-hf/config.json"}
    assert expected <= set(published)
    leaks = {name: paths_in(text, given) for name, text in published.items()}
    assert {name: found for name, found in leaks.items() if found} == {}
    for artifact in job.outputs:
        if artifact.name in published:
            copy = tmp_path / "bucket" / artifact.name
            S3Storage(stack.info.storage()).download_file(S3Location.parse(str(artifact.url)), copy)
            assert paths_in(copy.read_text(), given) == []
    manifest = json.loads(published["manifest.json"])
    assert manifest["request"]["base_model"] == location, "the request's own paths stay as they were given"
    assert manifest["stages"]["prepare"]["facts"]["base_name"] == "base"
    with PackagingClient(stack.info.redis_url) as client:
        kept = " ".join(event.message for event in client.events(job.id))
    assert "Tokenizer from /" in kept, "the log in Redis still says where"

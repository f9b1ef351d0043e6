"""Jobs that publish to the Hub and to a registry, through the real service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_client.cli.output import standard_output
from api_client.cli.render.made import made_lines
from api_client.contract.job import Job, JobState, StageName
from tests.integration.harness import REAL_STAGES, Installation
from tests.integration.storage.hub_server import TOKEN, Hub, hub_server
from tests.integration.storage.registry_server import RunningRegistry, oci_registry
from tests.tiny import tiny_base, tiny_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        hub.exists = False
        yield hub


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    valkey: str, hub: Hub, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    installation = Installation(valkey, tmp_path_factory.mktemp("service"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        allowed = f"hf://owner hf://else oci://{registry.host}/team"
        installation.start_worker(**REAL_STAGES, allowed_uploads=allowed, max_retries=0)
    yield installation
    installation.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("models")
    base = tiny_base(directory / "base")
    return {"base_model": str(base), "checkpoint": str(tiny_checkpoint(base, directory / "run")), "evaluation": "off"}


def done(service: Installation, name: str, run: dict[str, Any], target: str, **values: Any) -> Job:
    return service.wait(service.submit(name, **run, upload_to=target, **values), 180)


def last_line(job: Job) -> str:
    return str(list(made_lines(standard_output(as_json=False), job, ready=True))[-1])


def code_of(job: Job) -> str | None:
    return job.failure.code if job.failure is not None else None


def test_a_job_reaches_the_hub_with_its_card_and_a_replay_sends_nothing_twice(
    service: Installation, hub: Hub, run: dict[str, Any]
) -> None:
    job = done(service, "hub", run, "hf://owner/tiny", quant_types=["Q8_0"])
    assert job.error is None
    ours = {artifact.name: Path(artifact.path).read_bytes() for artifact in job.outputs}
    assert {"manifest.json", "SHA256SUMS", "merged_model.gguf", "merged_model-Q8_0.gguf"} == ours.keys()
    assert {name: data for name, data in hub.files.items() if name != "README.md"} == ours
    assert "merged_model-Q8_0.gguf" in hub.files["README.md"].decode()
    assert hub.private is True
    facts = job.stage(StageName.PUBLISH).facts
    assert (facts["upload_to"], facts["private"]) == ("hf://owner/tiny", True)
    assert any(
        "Published to hf://owner/tiny as commit" in line and "only its owner" in line
        for line in service.messages(job.id)
    )

    assert last_line(job) == "From any machine: llama-cli -hf owner/tiny:Q8_0"

    hub.seen.clear()
    service.client.replay(job.id, from_stage=StageName.PUBLISH)
    assert service.wait(job, 60).state is JobState.SUCCEEDED
    assert [path for verb, path in hub.seen if verb == "PUT"] == []


def test_where_the_hub_fails_the_local_files_are_there_and_a_replay_sends_them(
    service: Installation, hub: Hub, run: dict[str, Any]
) -> None:
    hub.status["/commit/"] = (500, "")
    job = done(service, "kept", run, "hf://owner/tiny", model_name="kept", quant_types=["Q8_0"])
    assert (job.state, code_of(job)) == (JobState.FAILED, "upload_failed")
    assert service.path("kept-Q8_0.gguf", "kept").is_file()
    assert "kept-Q8_0.gguf" not in hub.files
    hub.status.clear()
    service.client.replay(job.id)
    assert service.wait(job, 60).error is None
    assert hub.files["kept-Q8_0.gguf"] == service.path("kept-Q8_0.gguf", "kept").read_bytes()


def test_a_place_that_is_not_ours_or_not_allowed_is_refused_before_any_work(
    service: Installation, registry: RunningRegistry, run: dict[str, Any]
) -> None:
    for name, target, code in (
        ("a", "hf://else/tiny", "storage_denied"),
        ("b", "hf://third/tiny", "path_not_allowed"),
        ("c", f"oci://{registry.host}/teams/x", "path_not_allowed"),
    ):
        job = done(service, name, run, target)
        assert (code_of(job), job.stage(StageName.MERGE).state) == (code, "pending")


def test_a_job_reaches_a_registry_as_an_image_for_each_type(
    service: Installation, registry: RunningRegistry, run: dict[str, Any]
) -> None:
    target = f"oci://{registry.host}/team/tiny"
    job = done(service, "oci", run, target, quant_types=["Q8_0", "Q4_0"])
    assert job.error is None
    assert registry.tags("team/tiny") == ["BF16", "Q4_0", "Q8_0"]
    for tag, name in (("Q8_0", "merged_model-Q8_0.gguf"), ("BF16", "merged_model.gguf")):
        manifest = registry.manifest("team/tiny", tag)
        kinds = [layer["mediaType"] for layer in manifest["layers"]]
        assert (
            kinds
            == ["application/vnd.docker.ai.gguf.v3", "application/vnd.docker.ai.chat.template.jinja"][: len(kinds)]
        )
        data = registry.blob("team/tiny", manifest["layers"][0]["digest"])
        assert data == service.path(name, "oci").read_bytes()
        config = json.loads(registry.blob("team/tiny", manifest["config"]["digest"]))
        assert (config["config"]["format"], config["config"]["quantization"]) == ("gguf", tag)
        assert config["config"]["architecture"] == "llama"
        assert config["rootfs"]["diff_ids"][0] == f"sha256:{hashlib.sha256(data).hexdigest()}"

    assert last_line(job) == f"From any machine: docker model run {registry.host}/team/tiny:Q8_0"

    # the same content again is the same image; other content under its tag is not
    again = done(service, "again", run, target, quant_types=["Q8_0", "Q4_0"])
    assert again.error is None
    other = done(service, "other", run, f"{target}:Q8_0", template="lora_only")
    assert code_of(other) == "output_exists"
    assert done(service, "adapter", run, f"{target}:v2", template="lora_only").error is None
    (layer,) = registry.manifest("team/tiny", "v2")["layers"]
    assert layer["mediaType"] == "application/vnd.docker.ai.gguf.v3.lora"
    assert Path(layer["annotations"]["org.cncf.model.filepath"]).suffix == ".gguf"

"""A real model through the console: questions about files, a job, its files in object storage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_client.s3 import make_client, settings_from_here
from tests.integration.console.running import RunningConsole, messages, running_console
from tests.tiny import tiny_base, tiny_checkpoint
from worker.local.embedded.stack import Stack

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("模型 files")
    base = tiny_base(directory / "base")
    return base, tiny_checkpoint(base, directory / "run")


@pytest.fixture(scope="module")
def console(stack: Stack, run: tuple[Path, Path]) -> Iterator[RunningConsole]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.info.environment().items():
            patch.setenv(name, value)
        # The first question waits until the worker has loaded torch.
        with running_console(stack.info.redis_url, "trainpack", question_timeout_s=120) as console:
            yield console


@pytest.fixture
def http(console: RunningConsole) -> Iterator[httpx.Client]:
    with console.client("submit") as client:
        yield client


def test_a_job_s_files_are_fetched_from_the_storage_itself(
    http: httpx.Client, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    request = {"base_model": str(base), "checkpoint": str(checkpoint), "output_dir": str(tmp_path / "ü 出力")}
    job = http.post("/api/v1/jobs", json=request).json()
    with http.stream("GET", f"/api/v1/jobs/{job['id']}/events/stream", timeout=180) as answer:
        *log, end = messages(answer)
    assert end.data == {"state": "succeeded"}
    kinds = {message.data["kind"] for message in log}
    assert {"Merge LoRA", "GGUF conversion", "Quantization", "Command success"} <= kinds
    outputs = http.get(f"/api/v1/jobs/{job['id']}/outputs").json()["outputs"]
    assert {"merged_model.gguf", "merged_model-Q4_K_M.gguf", "manifest.json"} <= {one["name"] for one in outputs}
    for one in outputs:
        data = httpx.get(one["link"]).content
        assert (len(data), hashlib.sha256(data).hexdigest()) == (one["size_bytes"], one["sha256"])
    jump = http.get(f"/api/v1/jobs/{job['id']}/outputs/manifest.json")
    assert (jump.status_code, jump.content) == (307, b"")
    assert httpx.get(jump.headers["location"]).json()["job_id"] == job["id"]


def test_checkpoints_sizes_and_space_are_asked_where_the_files_are(
    http: httpx.Client, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    found = http.get("/api/v1/checkpoints", params={"run": str(checkpoint.parent)}).json()
    assert (found["listing"]["latest"], found["base_model"]) == ("checkpoint-10", str(base))
    assert found["listing"]["checkpoints"][0]["scores"] == {"eval_loss": 0.1}
    empty = http.get("/api/v1/checkpoints", params={"run": str(tmp_path / "no such")}).json()
    assert empty["listing"]["empty_reason"] == "directory_missing"
    for model in (base, checkpoint, checkpoint.parent):
        answer = http.get("/api/v1/recommend", params={"model": str(model), "target": "6GB", "context": 512}).json()
        assert (answer["model"], answer["architecture"], len(answer["choices"])) == (str(base), "llama", 34)
    space = http.get("/api/v1/space", params={"path": str(tmp_path / "new" / "dir")}).json()
    assert space["exists"] is False
    assert 0 < space["free_bytes"] < space["total_bytes"]


def test_a_model_in_object_storage_is_measured_by_its_headers(http: httpx.Client, run: tuple[Path, Path]) -> None:
    base, _ = run
    storage, bucket = make_client(settings_from_here()), os.environ["TRAINPACK_S3_BUCKET"]
    for file in base.iterdir():
        storage.put_object(Bucket=bucket, Key=f"models/{base.name}/{file.name}", Body=file.read_bytes())
    remote, local = (
        http.get("/api/v1/recommend", params={"model": model, "target": "6GB"}).json()
        for model in (f"s3://{bucket}/models/{base.name}", str(base))
    )
    assert remote == local | {"model": f"s3://{bucket}/models/{base.name}"}
    nothing = http.get("/api/v1/recommend", params={"model": f"s3://{bucket}/models"})
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (422, "base_model_not_found")


def test_words_choose_a_checkpoint_of_a_run_in_object_storage(
    http: httpx.Client, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    storage, bucket = make_client(settings_from_here()), os.environ["TRAINPACK_S3_BUCKET"]
    for file in checkpoint.iterdir():
        storage.put_object(Bucket=bucket, Key=f"runs/7/{checkpoint.name}/{file.name}", Body=file.read_bytes())
    task = {"task_id": "7", "status": "completed", "base_model": str(base), "output_dir": f"s3://{bucket}/runs/7"}
    ways: tuple[dict[str, Any], ...] = (
        {"checkpoint": f"s3://{bucket}/runs/7/best"},
        {"task": task, "checkpoint": "latest"},
    )
    for number, chosen in enumerate(ways):
        request = chosen | {"template": "lora_only", "base_model": str(base), "output_dir": str(tmp_path / str(number))}
        job = http.post("/api/v1/jobs", json=request | {"upload": False}).json()
        with http.stream("GET", f"/api/v1/jobs/{job['id']}/events/stream", timeout=180) as answer:
            *log, end = messages(answer)
        assert end.data == {"state": "succeeded"}, [message.data["message"] for message in log]
        assert (tmp_path / str(number) / f"{checkpoint.name}-lora.gguf").is_file()


@pytest.mark.parametrize(
    ("question", "status", "code"),
    [
        ("recommend?model=/none/such", 422, "base_model_not_found"),
        ("recommend?model=hf://owner/name", 422, "request_invalid"),
        ("recommend?model=/tmp&target=gpu-9g", 422, "request_invalid"),
        ("recommend?model=/tmp&context=0", 422, "request_invalid"),
        ("checkpoints?run=../up", 403, "path_not_allowed"),
        ("checkpoints?run=a%00b", 403, "path_not_allowed"),
        ("checkpoints?run=", 422, "request_invalid"),
        ("checkpoints", 422, "request_invalid"),
        ("space?path=s3://bucket/x", 422, "request_invalid"),
    ],
)
def test_a_wrong_question_is_refused(http: httpx.Client, question: str, status: int, code: str) -> None:
    answer = http.get(f"/api/v1/{question}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

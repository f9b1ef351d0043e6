"""The real stages through the real service: queue, worker process, stage processes, Valkey, S3 server."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from api_client.cli.output import standard_output
from api_client.cli.render.job import job_view
from api_client.client import PackagingClient
from api_client.contract.errors import ErrorCode
from api_client.contract.events import EventKind
from api_client.contract.job import Job, JobState, StageName, StageState
from api_client.contract.request import PackagingRequest
from api_client.s3 import S3Location
from tests.integration.harness import eventually
from tests.tiny import HIDDEN, tiny_base, tiny_checkpoint
from worker.local.embedded.stack import Stack
from worker.models.gguf.reader import open_gguf
from worker.storage.checksums import sha256_file
from worker.storage.s3 import S3Storage

pytestmark = pytest.mark.integration
WAIT_S = 180


@pytest.fixture(scope="module")
def client(stack: Stack) -> PackagingClient:
    return PackagingClient(stack.info.redis_url)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("models")
    base = tiny_base(directory / "base")
    return base, tiny_checkpoint(base, directory / "run")


def finished(client: PackagingClient, request: PackagingRequest) -> Job:
    return client.wait(client.submit(request).id, timeout=WAIT_S)


def test_default_job_reaches_directory_and_bucket(
    client: PackagingClient, stack: Stack, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    output = tmp_path / "package"
    job = finished(client, PackagingRequest(base_model=base, checkpoint=checkpoint, output_dir=output))
    assert job.error is None
    assert job.state is JobState.SUCCEEDED
    assert [stage.name.value for stage in job.stages] == [
        "prepare",
        "merge",
        "convert",
        "quantize",
        "verify",
        "evaluate",
        "publish",
    ]
    assert all(stage.state is StageState.SUCCEEDED and stage.attempt == 1 for stage in job.stages)
    storage = S3Storage(stack.info.storage())
    for artifact in job.outputs:
        assert Path(artifact.path) == output / artifact.name
        assert artifact.url == f"s3://{stack.info.bucket}/{job.id}/{artifact.name}"
        copy = tmp_path / "downloaded" / artifact.name
        storage.download_file(S3Location.parse(artifact.url), copy)
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == artifact.sha256
    eventually(lambda: not list(output.glob(".trainpack-*")), "the scratch directory is gone")


def test_the_bucket_has_the_checksums_of_the_job_alone_and_the_directory_those_of_all(
    client: PackagingClient, stack: Stack, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    fields: dict[str, Any] = {"base_model": base, "checkpoint": checkpoint, "output_dir": tmp_path / "package"}
    finished(client, PackagingRequest(template="lora_only", **fields))
    job = finished(client, PackagingRequest(template="merge", **fields))
    assert job.error is None
    near = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "package", capture_output=True, check=True)
    names = [b"checkpoint-10-lora.gguf:", b"merged_model.gguf:", b"quality.json:"]
    assert near.stdout.split() == [word for name in names for word in (name, b"OK")]
    storage = S3Storage(stack.info.storage())
    for artifact in job.outputs:
        storage.download_file(S3Location.parse(str(artifact.url)), tmp_path / "far" / artifact.name)
        assert sha256_file(tmp_path / "far" / artifact.name) == artifact.sha256
    far = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "far", capture_output=True, check=True)
    assert far.stdout.split() == [b"merged_model.gguf:", b"OK", b"quality.json:", b"OK"]


def test_types_for_weights_trained_on_their_values_are_made_and_load(client: PackagingClient, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", hidden_size=256, intermediate_size=256, head_dim=64)
    made = {"TQ1_0": 14, "TQ2_0": 14, "Q2_0": 14, "Q1_0": 15, "MXFP4_MOE": 16}
    job = finished(
        client,
        PackagingRequest(
            template="quantize_base",
            base_model=base,
            output_dir=tmp_path / "package",
            model_name="tern",
            quant_types=list(made),
            evaluation="off",
            upload=False,
        ),
    )
    assert job.error is None  # verify has loaded each of them in llama.cpp
    for name, count in made.items():
        with open_gguf(tmp_path / "package" / f"tern-{name}.gguf") as file:
            types = [tensor.type.name for tensor in file.tensors]
        assert types.count("Q8_0" if name == "MXFP4_MOE" else name) == count  # Q8_0 where there are no experts


def test_a_type_whose_blocks_divide_no_row_fails_the_job_in_prepare(
    client: PackagingClient, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = run
    request = PackagingRequest(
        template="quantize_base", base_model=base, output_dir=tmp_path / "package", quant_types=["Q4_0", "Q1_0"]
    )
    job = finished(client, request)
    assert job.state is JobState.FAILED
    assert job.error
    assert job.error["code"] == ErrorCode.QUANT_TYPE_UNFIT.value
    assert job.stage(StageName.PREPARE).state is StageState.FAILED
    assert "rows of 64, no multiple of the 128" in job.error["message"]


def test_events_tell_the_story_with_the_known_kinds(
    client: PackagingClient, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    request = PackagingRequest(base_model=base, checkpoint=checkpoint, output_dir=tmp_path / "package", upload=False)
    job = finished(client, request)
    kinds = {event.kind for event in client.events(job.id)}
    assert {
        EventKind.MERGE_LORA, EventKind.GGUF_CONVERSION, EventKind.QUANTIZATION, EventKind.COMMAND_SUCCESS,
    } <= kinds  # fmt: skip


def test_a_bad_checkpoint_fails_the_job_in_prepare(
    client: PackagingClient, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    missing = checkpoint.with_name("checkpoint-404")
    job = finished(client, PackagingRequest(base_model=base, checkpoint=missing, output_dir=tmp_path / "package"))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == ErrorCode.CHECKPOINT_NOT_FOUND
    assert job.stage(StageName.PREPARE).state is StageState.FAILED
    # the job counts as ended a moment before its scratch is gone
    eventually(lambda: not (tmp_path / "package").exists(), "nothing is left behind")


def test_weights_that_were_trained_beside_the_adapter_are_packaged_or_refused_by_name(
    client: PackagingClient, stack: Stack, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, original = run
    checkpoint = Path(shutil.copytree(original, tmp_path / "run" / "checkpoint-10"))
    norm = {"base_model.model.model.norm.weight": torch.full((HIDDEN,), 3.0)}
    torch.save(norm, checkpoint / "non_lora_state_dict.bin")
    fields: dict[str, Any] = {"base_model": base, "output_dir": tmp_path / "package", "template": "merge"}
    far = S3Location(stack.info.bucket, "beside/checkpoint-10")
    for path in checkpoint.iterdir():
        S3Storage(stack.info.storage()).upload_file(path, S3Location(far.bucket, f"{far.key}/{path.name}"))
    for where in (str(checkpoint), f"s3://{far.bucket}/{far.key}"):
        job = finished(client, PackagingRequest(checkpoint=where, **fields))
        assert job.error is not None
        assert job.error["code"] == ErrorCode.WEIGHTS_PICKLED.value
        assert "non_lora_state_dict.bin" in job.error["message"]
        assert "non_lora_state_dict.safetensors" in job.error["remedy"]
    save_file(norm, checkpoint / "non_lora_state_dict.safetensors")
    job = finished(client, PackagingRequest(checkpoint=checkpoint, **fields))
    assert job.error is None
    with open_gguf(tmp_path / "package" / "merged_model.gguf") as file:
        values = file.tensor_bytes(file.by_name["output_norm.weight"]).view("<f4")
    assert set(values.ravel().tolist()) == {3.0}
    manifest = json.loads((tmp_path / "package" / "manifest.json").read_text())
    assert "non_lora_state_dict.safetensors" in json.dumps(manifest)


def test_a_given_base_that_is_not_there_is_refused_and_a_derived_one_is_shown(
    client: PackagingClient, run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, checkpoint = run
    wrong = base.with_name("bsae")
    fields: dict[str, Any] = {"checkpoint": checkpoint, "template": "merge", "upload": False}
    given = PackagingRequest(base_model=wrong, output_dir=tmp_path / "given", **fields)
    refused = finished(client, given)
    assert refused.failure is not None
    assert refused.failure.code is ErrorCode.BASE_MODEL_NOT_FOUND
    assert refused.failure.message == f"base_model: {wrong} does not exist; did you mean {base}?"
    assert not (tmp_path / "given" / "merged_model.gguf").exists()
    task = {"task_id": "7", "status": "completed", "base_model": str(wrong), "output_dir": str(checkpoint.parent)}
    derived = finished(client, PackagingRequest(task=task, output_dir=tmp_path / "derived", **fields))
    assert derived.error is None
    manifest = json.loads((tmp_path / "derived" / "manifest.json").read_text())
    assert derived.base_used is not None
    assert derived.base_used.path == str(base)
    assert derived.base_used.named_by == "checkpoint-10/adapter_config.json"
    assert derived.base_used.digest == manifest["inputs"]["base_model"]["header_fingerprint"]
    shown = "\n".join(str(part) for part in job_view(standard_output(as_json=False), derived, 120))
    assert f"weights used: {base}  {derived.base_used.digest[:12]}  (named by checkpoint-10/" in shown

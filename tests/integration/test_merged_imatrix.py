"""The importance matrix of a merged job, through the real service: the merged model's own, and published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api_client import ArtifactKind, Job
from tests.integration.harness import Installation
from tests.tiny import tiny_base, tiny_checkpoint
from worker.storage.checksums import parse_checksums

MATRIX = "merged_model.imatrix.gguf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("model")
    base = tiny_base(directory / "base")
    return {"base_model": str(base), "checkpoint": str(tiny_checkpoint(base, directory / "run"))}


def published(real: Installation, job: Job, name: str) -> bytes:
    ended = real.wait(job, 180)
    assert ended.error is None
    matrices = [artifact.name for artifact in ended.outputs if artifact.kind is ArtifactKind.IMATRIX]
    assert matrices == [name]
    directory = Path(str(ended.request.output_dir))
    manifest = json.loads((directory / "manifest.json").read_text())
    assert name in {entry["name"] for entry in manifest["files"]}
    assert name in parse_checksums((directory / "SHA256SUMS").read_text())
    return (directory / name).read_bytes()


def test_the_published_matrix_is_the_merged_model_s_and_not_the_base_s(
    real: Installation, model: dict[str, str]
) -> None:
    wanted = {"quant_types": ["IQ2_M"], "imatrix": {"chunks": 2}, "evaluation": "off"}
    job = real.submit("merged", save_merged=True, **wanted, **model)
    merged = published(real, job, MATRIX)
    checkpoint = real.path("merged_model-hf", "merged")
    alone = {"template": "quantize_base", "checkpoint": None, **wanted}
    of_checkpoint = real.submit("checkpoint", base_model=str(checkpoint), **alone)
    assert merged == published(real, of_checkpoint, "merged_model-hf.imatrix.gguf")
    of_base = real.submit("base", base_model=model["base_model"], **alone)
    assert merged != published(real, of_base, "base.imatrix.gguf")
    assert (real.path("merged_model-IQ2_M.gguf", "merged")).is_file()


def test_a_matrix_that_was_given_is_used_as_it_is_and_not_published(
    real: Installation, model: dict[str, str], tmp_path: Path
) -> None:
    base = {
        "template": "quantize_base",
        "checkpoint": None,
        "base_model": model["base_model"],
        "quant_types": ["IQ2_M"],
        "evaluation": "off",
    }
    computed = real.submit("computed", imatrix={"chunks": 1}, **base)
    matrix = tmp_path / "elsewhere" / "base.imatrix.gguf"  # quantized files say its name
    matrix.parent.mkdir()
    matrix.write_bytes(published(real, computed, "base.imatrix.gguf"))
    job = real.wait(real.submit("given", imatrix=str(matrix), **base), 180)
    assert job.error is None
    assert [artifact.name for artifact in job.outputs if artifact.kind is ArtifactKind.IMATRIX] == []
    assert matrix.is_file()
    assert real.path("base-IQ2_M.gguf", "given").read_bytes() == (real.path("base-IQ2_M.gguf", "computed").read_bytes())

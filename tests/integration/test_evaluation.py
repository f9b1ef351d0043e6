"""Evaluation through the real service: its report is published, and a bound keeps back what is below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_client import ArtifactKind, ErrorCode, StageName
from api_client.contract.quality import QualityReport
from api_client.ledger.questions import Questions
from tests.integration.harness import Installation
from tests.tiny import TEXT, tiny_base, tiny_checkpoint
from worker.storage.checksums import parse_checksums

PROMPT = "What is a checkpoint?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("model")
    base = tiny_base(directory / "base")
    return {"base_model": str(base), "checkpoint": str(tiny_checkpoint(base, directory / "run"))}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(TEXT * 60))
    return str(path)


def test_the_report_is_published_and_a_bound_keeps_the_files_back(
    real: Installation, model: dict[str, str], text: str
) -> None:
    wanted = {"quant_types": ["Q8_0", "Q4_0"], "gguf_dtype": "f32", **model}
    asking = {"text": text, "min_retention": 0.2, "questions": [PROMPT]}
    kept = real.wait(real.submit("kept", evaluation=asking, **wanted), 180)
    assert kept.error is None
    assert StageName.EVALUATE in kept.plan
    assert ArtifactKind.QUALITY in {artifact.kind for artifact in kept.outputs}
    directory = Path(str(kept.request.output_dir))
    assert "quality.json" in parse_checksums((directory / "SHA256SUMS").read_text())
    report = QualityReport.model_validate_json((directory / "quality.json").read_bytes())
    whole, q8, q4 = (file.overall.mean_kld.value for file in report.files if file.overall is not None)
    # the unquantized file is the merged model and not the base's: its KLD is rounding, the base's is the training
    assert report.training is not None
    assert whole < 1e-6 < q8 < q4 < report.training.mean_kld.value
    assert str(directory.parent) not in (directory / "quality.json").read_text()

    # what status, outputs and the console read of it, and what later recommendations are told
    lines = {line.name: line for line in real.client.get(kept.id).quality}
    overall = report.files[2].overall
    assert overall is not None
    assert lines["merged_model-Q4_0.gguf"].mean_kld == overall.mean_kld
    assert lines["merged_model-Q8_0.gguf"].retention == report.files[1].retention
    assert kept.report is not None
    assert kept.report.files == report.files
    (asked,) = kept.report.questions
    assert [answer.by for answer in asked.answers] == ["reference", *(file.name for file in report.files)]
    measured = {one.quant_type.value: one for one in real.client.figures("llama")}
    assert measured["Q4_0"].mean_kld.value == q4
    _, found = Questions(real.client).recommend(str(directory / "merged_model.gguf"), "gpu-8g")
    told = {choice.quant_type.value: choice.measured for choice in found.choices}
    assert told["Q4_0"] == measured["Q4_0"]
    assert told["Q5_K_M"] is None

    below = real.wait(real.submit("below", evaluation={"text": text, "max_mean_kld": q4 / 2}, **wanted), 180)
    assert below.error is not None
    assert below.error["code"] == ErrorCode.QUALITY_BELOW_THRESHOLD
    assert "merged_model-Q4_0.gguf" in below.error["message"]
    assert not list(Path(str(below.request.output_dir)).glob("*.gguf"))
    assert {line.name: line.mean_kld for line in below.quality} == {n: line.mean_kld for n, line in lines.items()}

    wrong = {"questions": {PROMPT: "what no random model says"}}
    silent = real.wait(real.submit("silent", template="merge", evaluation=wrong, **model), 180)
    assert silent.error is not None
    assert silent.error["code"] == ErrorCode.QUALITY_BELOW_THRESHOLD
    assert silent.error["fields"]["question"] == PROMPT
    assert "merged_model.gguf answers" in silent.error["message"]
    assert not list(Path(str(silent.request.output_dir)).glob("*.gguf"))

"""Quantized base models through the real service: merged, quantized with a matrix, measured, published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from api_client import ErrorCode, Job
from api_client.contract.quality import QualityReport, StepState, StepWord
from tests.integration.harness import Installation
from tests.quantized import WEIGHTS, fp8, nf4, requantized
from tests.tiny import TEXT, tiny_base, tiny_checkpoint
from worker.models.checkpoint import open_base_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(TEXT * 40))
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def checkpoint(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(plain, tmp_path_factory.mktemp("run")))


def done(service: Installation, name: str, base: Path, checkpoint: str, **values: Any) -> tuple[Job, dict[str, Any]]:
    """A job that went well, and its manifest."""
    job = service.wait(service.submit(name, base_model=str(base), checkpoint=checkpoint, **values), 180)
    assert job.error is None
    return job, json.loads((Path(str(job.request.output_dir)) / "manifest.json").read_text())


def messages(service: Installation, job: Job) -> str:
    return "\n".join(event.message for event in service.client.events(job.id))


def dequantized(base: Path, plain: Path, directory: Path) -> Path:
    shutil.copytree(plain, directory)
    model = open_base_model(base)
    save_file({name: model.read_tensor(name) for name in model.tensors}, directory / WEIGHTS)
    return directory


def test_files_of_a_quantized_base_are_those_of_its_plain_weights(
    real: Installation, plain: Path, checkpoint: str, text: str, tmp_path: Path
) -> None:
    """And transformers and PEFT, which the evaluation asks on the quantized model itself, say the same of them."""
    wanted = {"quant_types": ["IQ2_M"], "imatrix": {"chunks": 1}}
    base = fp8(plain, tmp_path / "fp8" / "base")
    ours, manifest = done(real, "ours", base, checkpoint, evaluation={"text": text}, save_merged=True, **wanted)
    assert manifest["inputs"]["base_model"]["made_plain_from"] == "fp8"
    assert "Its fp8 weights are read as plain BF16" in messages(real, ours)
    plain_base = dequantized(base, plain, tmp_path / "plain" / "base")
    done(real, "theirs", plain_base, checkpoint, evaluation="off", **wanted)
    for name in ("merged_model.gguf", "merged_model-IQ2_M.gguf", "merged_model.imatrix.gguf"):
        assert real.path(name, "ours").read_bytes() == real.path(name, "theirs").read_bytes(), name
    config = json.loads((real.path("merged_model-hf", "ours") / "config.json").read_text())
    assert "quantization_config" not in config
    report = QualityReport.model_validate_json(real.path("quality.json", "ours").read_bytes())
    assert {step.step: step.state for step in report.origin}[StepWord.MERGE] is StepState.SAME
    assert len([file for file in report.files if file.overall]) == 2


def test_an_adapter_trained_in_four_bits_says_how_far_the_base_lies(
    real: Installation, plain: Path, checkpoint: str, tmp_path: Path
) -> None:
    trained = tmp_path / "run" / "checkpoint-10"
    shutil.copytree(checkpoint, trained)
    config = json.loads((trained / "adapter_config.json").read_text())
    name = {"base_model_name_or_path": "unsloth/tiny-bnb-4bit"}
    (trained / "adapter_config.json").write_text(json.dumps(config | name))
    merge = {"template": "merge", "evaluation": "off"}
    job, manifest = done(real, "sixteen", plain, str(trained), **merge)
    facts = manifest["stages"]["merge"]["facts"]["four_bit_training"]
    assert (facts["type"], facts["said_by"]) == ("nf4", "adapter_config.json")
    assert 0.05 < facts["base_error"] < 0.12
    assert facts["base_error_to_change"] == pytest.approx(facts["base_error"] / facts["change"])
    assert f"by {facts['base_error_to_change']:.3g} times what the adapter changes" in messages(real, job)
    assert "That is more than" not in messages(real, job)

    job, manifest = done(real, "four", nf4(plain, tmp_path / "nf4", nested=True), str(trained), **merge)
    assert manifest["stages"]["merge"]["facts"]["four_bit_training"]["merged_into"] == "the same weights"
    assert manifest["inputs"]["base_model"]["made_plain_from"] == "bitsandbytes"
    files = {name: real.path("merged_model.gguf", name).read_bytes() for name in ("sixteen", "four")}
    assert files["four"] != files["sixteen"]


def test_merging_into_the_precision_of_training_is_merging_into_the_four_bit_model(
    real: Installation, plain: Path, checkpoint: str, text: str, tmp_path: Path
) -> None:
    done(real, "rounded", plain, checkpoint, base_precision="nf4", evaluation={"text": text}, quant_types=["Q8_0"])
    report = QualityReport.model_validate_json(real.path("quality.json", "rounded").read_bytes())
    steps = {step.step: step for step in report.origin}
    assert (steps[StepWord.MERGE].state, steps[StepWord.CONVERSION].state) == (StepState.NOT_CHECKED, StepState.SAME)
    assert "do not round the base (nf4)" in steps[StepWord.MERGE].fact
    done(real, "of_four", nf4(plain, tmp_path / "four" / "base"), checkpoint, evaluation="off", quant_types=["Q8_0"])
    for name in ("merged_model.gguf", "merged_model-Q8_0.gguf"):
        assert real.path(name, "rounded").read_bytes() == real.path(name, "of_four").read_bytes(), name
    base = nf4(plain, tmp_path / "twice")
    again = real.submit("twice", base_model=str(base), checkpoint=checkpoint, base_precision="nf4")
    job = real.wait(again, 60)
    assert job.error is not None
    assert job.error["code"] == ErrorCode.REQUEST_INVALID
    assert "not rounded again" in job.error["message"]


def test_what_is_not_read_is_refused_in_prepare_and_named(
    real: Installation, plain: Path, checkpoint: str, tmp_path: Path
) -> None:
    awq = requantized(plain, tmp_path / "awq", {"quant_method": "awq", "bits": 4}, dict)
    broken = requantized(
        fp8(plain, tmp_path / "fp8"),
        tmp_path / "broken",
        {"quant_method": "fp8", "weight_block_size": [16, 32]},
        lambda tensors: {name: value[:1] if name.endswith("_scale_inv") else value for name, value in tensors.items()},
    )
    for base, says in ((awq, "awq"), (broken, "weight_scale_inv")):
        job = real.wait(real.submit(base.name, base_model=str(base), checkpoint=checkpoint), 60)
        assert job.error is not None
        assert job.error["code"] == ErrorCode.BASE_MODEL_QUANTIZED
        assert says in job.error["message"]
        assert job.error["stage"] == "prepare"

"""A vision model through the real service: a matched pair of one job, each holding what was trained of it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from api_client import Job
from api_client.contract.artifacts import ModelPart
from api_client.contract.job import JobState
from tests.integration.harness import Installation
from tests.sighted import tiny_sighted
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.models.gguf.reader import open_gguf

PROJECTOR = "mmproj-merged_model.gguf"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sighted(tmp_path_factory.mktemp("model") / "seer", "qwen2_vl")


def adapter(base: Path, directory: Path, targets: str) -> str:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
        tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        tuned.save_pretrained(directory)
    return str(directory)


def done(real: Installation, name: str, base: Path, **values: Any) -> tuple[Job, dict[str, dict[str, bytes]]]:
    """A job that went well, and the tensors of each file that it published."""
    job = real.wait(real.submit(name, base_model=str(base), evaluation="off", **values), 180)
    assert job.error is None
    return job, {path.name: tensors(path) for path in Path(str(job.request.output_dir)).glob("*.gguf")}


def tensors(path: Path) -> dict[str, bytes]:
    with open_gguf(path) as file:
        return {tensor.name: bytes(file.tensor_bytes(tensor)) for tensor in file.tensors}


def untuned(path: Path, part: ModelPart, base: Path) -> dict[str, bytes]:
    convert(base, path, naming=Naming(part=part))
    return tensors(path)


def test_each_file_of_the_pair_holds_what_was_trained_of_it(real: Installation, base: Path, tmp_path: Path) -> None:
    tower = adapter(base, tmp_path / "tower" / "checkpoint-1", r".*visual.*\.(qkv|fc1|fc2)")
    text = adapter(base, tmp_path / "text" / "checkpoint-1", r".*language_model.*\.(q_proj|down_proj)")
    plain_text = untuned(tmp_path / "text.gguf", ModelPart.MODEL, base)
    plain_projector = untuned(tmp_path / "mmproj.gguf", ModelPart.PROJECTOR, base)

    job, files = done(real, "of_tower", base, checkpoint=tower, quant_types=["Q8_0"], companions=True)
    assert sorted(files) == ["merged_model-Q8_0.gguf", "merged_model.gguf", PROJECTOR]
    (projector,) = [artifact for artifact in job.outputs if artifact.part is ModelPart.PROJECTOR]
    assert projector.name == PROJECTOR
    assert files["merged_model.gguf"] == plain_text
    assert files[PROJECTOR].keys() == plain_projector.keys()
    assert files[PROJECTOR] != plain_projector
    directory = Path(str(job.request.output_dir))
    assert (directory / "Modelfile").read_text().startswith(f"FROM ./merged_model-Q8_0.gguf\nFROM ./{PROJECTOR}\n")
    assert f"llama-mtmd-cli -m merged_model.gguf --mmproj {PROJECTOR}`" in (directory / "README.md").read_text()
    manifest = json.loads((Path(str(job.request.output_dir)) / "manifest.json").read_text())
    assert PROJECTOR in {entry["name"] for entry in manifest["files"]}
    assert sorted(manifest["stages"]["verify"]["facts"]["loaded"]) == sorted(files)
    messages = [event.message for event in real.client.events(job.id)]
    assert any(message.startswith(f"{PROJECTOR} beside merged_model.gguf answers ") for message in messages)

    _, files = done(real, "of_text", base, checkpoint=text, quant_types=["Q8_0"], keep_unquantized=False)
    assert sorted(files) == ["merged_model-Q8_0.gguf", PROJECTOR]
    assert files[PROJECTOR] == plain_projector


def test_a_projector_is_left_out_on_request_and_refused_where_there_is_none(
    real: Installation, base: Path, tmp_path: Path
) -> None:
    from tests.tiny import tiny_base

    alone = {"template": "quantize_base", "checkpoint": None, "quant_types": ["Q8_0"]}
    _, files = done(real, "off", base, projector="off", **alone)
    assert sorted(files) == ["seer-Q8_0.gguf", "seer.gguf"]
    blind = tiny_base(tmp_path / "blind")
    job = real.wait(real.submit("blind", base_model=str(blind), projector="f16", **alone), 60)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "projector_invalid"
    assert "set `projector` to `off`" in job.error["remedy"]


def test_what_was_saved_without_its_processor_is_packaged_as_text_and_the_log_says_so(
    real: Installation, base: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(base, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    alone = {"template": "quantize_base", "checkpoint": None, "quant_types": ["Q8_0"]}
    job, files = done(real, "bare", bare, **alone)
    assert sorted(files) == ["bare-Q8_0.gguf", "bare.gguf"]
    notes = [event.message for event in real.client.events(job.id) if event.level == "warning"]
    assert [note for note in notes if note.startswith("Only the text model is packaged: the directory has neither")]
    job = real.wait(real.submit("named", base_model=str(bare), projector="f16", **alone), 60)
    assert job.error is not None
    assert job.error["code"] == "projector_invalid"
    assert "image_mean is missing" in job.error["message"]

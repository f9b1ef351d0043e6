"""Prediction layers (MTP, NextN) through the real service: grafted onto a full tune, dropped, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from api_client import ErrorCode, Job
from tests.integration.harness import Installation
from tests.tiny import TEXT, tiny_base
from tests.unit.convert.convert_samples import read_gguf, save_adapter
from tests.unit.convert.draft_samples import make_agreeing, save_predicting, without_draft_head
from worker.models.gguf.reader import open_gguf

FAMILY, NEXTN = "qwen3.5", "qwen35.nextn_predict_layers"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_predicting(FAMILY, tmp_path_factory.mktemp("model") / "seer")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full fine-tune's checkpoint: training dropped the layers, and its config still announces them."""
    return without_draft_head(FAMILY, base, tmp_path_factory.mktemp("run") / "checkpoint-7")


def done(real: Installation, name: str, **values: Any) -> tuple[Job, dict[str, Any]]:
    """A job that went well, and its manifest."""
    job = real.wait(real.submit(name, **values), 180)
    assert job.error is None
    return job, json.loads((Path(str(job.request.output_dir)) / "manifest.json").read_text())


def said(real: Installation, job: Job, level: str) -> list[str]:
    return [event.message for event in real.client.events(job.id) if event.level == level]


def nextn(path: Path) -> tuple[int, int]:
    """How many prediction layers a file announces, and how many are in it."""
    with open_gguf(path) as file:
        announced = file.metadata.get(NEXTN)
        present = sum(tensor.name.endswith("nextn.eh_proj.weight") for tensor in file.tensors)
    return (announced.value if announced is not None else 0), present


def refused(real: Installation, name: str, *, stage: str = "prepare", **values: Any) -> dict[str, Any]:
    job = real.wait(real.submit(name, **values), 180)
    assert job.error is not None
    assert job.error["code"] == ErrorCode.DRAFT_HEAD_INVALID
    assert job.error["stage"] == stage
    return dict(job.error)


def test_a_full_tune_gets_the_layers_that_it_dropped_from_its_base(
    real: Installation, base: Path, tuned: Path, tmp_path: Path
) -> None:
    """By itself; through matrix, quantization and evaluation, none of which runs them; llama.cpp loads the files."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXT * 40))
    full = {"template": "quantize_base", "base_model": str(base), "checkpoint": str(tuned), "quant_types": ["Q8_0"]}
    job, manifest = done(
        real, "grafted", **full, evaluation={"text": str(text)}, imatrix={"mode": "compute", "chunks": 1}
    )
    assert manifest["stages"]["prepare"]["facts"]["draft_head"] == {"did": "grafted", "layers": 1, "from": "seer"}
    assert manifest["inputs"]["draft_head"]["name"] == "seer"
    assert manifest["inputs"]["base_model"]["tensors"] < manifest["inputs"]["draft_head"]["tensors"]
    assert "1 prediction layers (MTP, NextN) are taken from the base model seer" in said(real, job, "info")
    files = sorted(Path(str(job.request.output_dir)).glob("*.gguf"))
    weights = [path for path in files if "imatrix" not in path.name]
    assert [nextn(path) for path in weights] == [(1, 1), (1, 1)]
    assert set(manifest["stages"]["verify"]["facts"]["loaded"]) == {path.name for path in weights}
    (plain,) = [path for path in weights if "Q8_0" not in path.name]
    assert manifest["stages"]["prepare"]["facts"]["predicted_bytes"][plain.name] == plain.stat().st_size

    # random weights predict nothing: of layers that nobody asked for the log warns
    drafts = manifest["stages"]["verify"]["facts"]["drafts"]
    assert {name: told["accepted"] for name, told in drafts.items()} == {path.name: 0 for path in weights}
    warned = [note for note in said(real, job, "warning") if "drafted by its prediction layers are accepted" in note]
    assert len(warned) == len(weights)


def test_layers_that_are_asked_for_have_to_predict(real: Installation, base: Path, tuned: Path, tmp_path: Path) -> None:
    """llama.cpp drafts with them; the file is quantized without one in between."""
    full: dict[str, Any] = {
        "template": "quantize_base",
        "quant_types": ["Q8_0"],
        "evaluation": "off",
        "keep_unquantized": False,
    }
    dead = {"base_model": str(base), "checkpoint": str(tuned), "draft_head": "graft"}
    error = refused(real, "dead", stage="verify", **full, **dead)
    assert "tokens drafted by its prediction layers is accepted" in error["message"]

    shutil.copytree(base, tmp_path / "alive")
    make_agreeing(tmp_path / "alive")
    trained = without_draft_head(FAMILY, tmp_path / "alive", tmp_path / "run" / "checkpoint-8")
    alive = {"base_model": str(tmp_path / "alive"), "checkpoint": str(trained), "draft_head": "graft"}
    job, manifest = done(real, "alive", **full, **alive)
    ((name, told),) = manifest["stages"]["verify"]["facts"]["drafts"].items()
    assert told["accepted"] == told["drafted"] > 40
    assert (
        f"{name}: {told['drafted']} of {told['drafted']} tokens drafted by its prediction layers are accepted"
        in said(real, job, "info")
    )
    assert nextn(real.path(name, "alive")) == (1, 1)


def test_an_adapter_job_drops_them_on_request_and_keeps_them_by_itself(
    real: Installation, base: Path, tmp_path: Path
) -> None:
    adapter = str(save_adapter(base, tmp_path / "run" / "checkpoint-3", target_modules=["q_proj", "up_proj"]))
    merge = {"base_model": str(base), "checkpoint": adapter, "evaluation": "off", "quant_types": ["Q8_0"]}
    _, manifest = done(real, "kept", **merge)
    assert manifest["stages"]["prepare"]["facts"]["draft_head"] == {"did": "kept", "layers": 1}
    job, manifest = done(real, "dropped", **merge, draft_head="drop")
    assert manifest["stages"]["prepare"]["facts"]["draft_head"] == {"did": "dropped", "layers": 0}
    assert "Prediction layers (MTP, NextN) are left out, as draft_head says" in said(real, job, "info")
    for name in ("merged_model.gguf", "merged_model-Q8_0.gguf"):
        assert nextn(real.path(name, "kept")) == (1, 1)
        assert nextn(real.path(name, "dropped")) == (0, 0)
    whole, without = (read_gguf(real.path("merged_model.gguf", name))[1] for name in ("kept", "dropped"))
    assert {name: tensor for name, tensor in whole.items() if not name.startswith("blk.2.")}.keys() == without.keys()
    assert all(whole[name].equal(tensor) for name, tensor in without.items())
    assert sorted(manifest["stages"]["verify"]["facts"]["loaded"]) == ["merged_model-Q8_0.gguf", "merged_model.gguf"]


def test_what_is_not_there_as_asked_is_refused_in_prepare(
    real: Installation, base: Path, tuned: Path, tmp_path: Path
) -> None:
    full: dict[str, Any] = {"template": "quantize_base", "checkpoint": str(tuned), "quant_types": ["Q8_0"]}
    error = refused(real, "keep", **full, base_model=str(base), draft_head="keep")
    assert "config.json announces 1 (mtp_num_hidden_layers)" in error["message"]
    assert "`graft`" in error["remedy"]
    assert "`drop`" in error["remedy"]
    alone: dict[str, Any] = {
        "template": "quantize_base",
        "checkpoint": None,
        "base_model": str(tuned),
        "quant_types": ["Q8_0"],
    }
    assert "no other model is named" in refused(real, "alone", **alone, draft_head="graft")["message"]
    other = tiny_base(tmp_path / "llama")
    assert "neither" in refused(real, "other", **full, base_model=str(other), draft_head="graft")["message"]
    # by itself the job goes on without them, and says why
    job, manifest = done(real, "auto", **full, base_model=str(tmp_path / "gone"), evaluation="off")
    assert manifest["stages"]["prepare"]["facts"]["draft_head"] == {"did": "dropped", "layers": 0}
    (note,) = [note for note in said(real, job, "warning") if note.startswith("Prediction layers")]
    assert "gone does not exist" in note

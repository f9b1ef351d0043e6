"""``trainpack evaluate``: files that others made, against a directory or against another file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api_client.cli import run
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from config.roots import Roots
from tests.tiny import TEXT, tiny_base, tiny_checkpoint
from worker.models.adapters.adapter import open_adapter
from worker.models.adapters.build import build_overlay
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.variants import QuantizedFile
from worker.models.quantize.engine import quantize_file
from worker.setting import WorkSetting


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A tune as F32 and Q8_0, its base and its adapter, and a text."""
    base = tiny_base(tmp_path / "base", dtype="float32")
    checkpoint = tiny_checkpoint(base, tmp_path / "run")
    adapter = open_adapter(checkpoint, allowed_roots=Roots.anywhere())
    model = open_base_model(base)
    overlay = Overlay.load(build_overlay(adapter, model, tmp_path / "o.safetensors", precision="base").path)
    setting = WorkSetting(scratch_dir=tmp_path, roots=Roots.anywhere())
    convert(base, tmp_path / "tune.gguf", gguf_dtype="f32", overlay=overlay, setting=setting)
    quantize_file(tmp_path / "tune.gguf", {QuantType.Q8_0: tmp_path / "tune-Q8_0.gguf"})
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 60))
    return tmp_path


def test_a_file_is_the_reference_as_the_model_that_it_was_made_of_is(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*reference: object) -> dict[str, Any]:
        arguments = ["evaluate", files / "tune-Q8_0.gguf", *reference, "--text", files / "text.txt", "--json"]
        assert run([str(argument) for argument in arguments]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        (file,) = document["files"]
        return document | {"file": file}

    by_model = report("--reference", files / "base", "--checkpoint", files / "run" / "checkpoint-10")
    by_file = report("--reference", files / "tune.gguf", "--base", files / "base")
    assert by_file["reference"] == "tune.gguf"
    for told in (by_model, by_file):
        assert told["file"]["name"] == "tune-Q8_0.gguf"
        assert 0 < told["file"]["overall"]["mean_kld"]["value"] < told["training"]["mean_kld"]["value"]
    assert by_file["file"]["retention"] == pytest.approx(by_model["file"]["retention"], rel=0.01)
    means = [told["file"]["overall"]["mean_kld"]["value"] for told in (by_file, by_model)]
    assert means[0] == pytest.approx(means[1], rel=0.01)
    learnt = [told["training"]["mean_kld"]["value"] for told in (by_file, by_model)]
    assert learnt[0] == pytest.approx(learnt[1], rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ((), "--reference is missing"),
        (("--reference", "tune.gguf"), "give the directory of its base model with --base"),
        (("--reference", "a", "--base", "b"), "--base goes with a --reference that is a GGUF file"),
    ],
    ids=["none", "a file alone", "two directories"],
)
def test_what_is_missing_is_said(arguments: tuple[str, ...], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "tune-Q8_0.gguf", *arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == ErrorCode.REQUEST_INVALID
    assert fact in error["message"]


def test_a_file_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", dtype="float32")
    other = tiny_base(tmp_path / "other", dtype="float32", vocab_size=448)
    setting = WorkSetting(scratch_dir=tmp_path, roots=Roots.anywhere())
    convert(other, tmp_path / "other.gguf", gguf_dtype="f32", setting=setting)
    file = QuantizedFile("other.gguf", [tmp_path / "other.gguf"])
    sequences = [TokenSequence("a", tuple(range(3, 43)), 1)]
    with pytest.raises(PackagingError) as caught:
        evaluate_files(open_base_model(base), None, [file], sequences, Budget(None), setting=setting)
    assert caught.value.code is ErrorCode.VOCABULARY_MISMATCH
    assert caught.value.message == "other.gguf has 448 tokens, the model that it is compared with 400"
    assert "same tokenizer" in str(caught.value.failure.remedy)

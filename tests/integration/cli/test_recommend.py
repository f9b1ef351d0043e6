"""``recommend`` and ``quantize`` on a real GGUF file: the predicted sizes are those of the files made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.quant_types import QUANT_TYPES, QuantType
from tests.integration.harness import ROOT
from tests.tiny import tiny_base
from worker.models.convert.metadata import Naming, describe
from worker.models.convert.pipeline import convert
from worker.models.gguf.reader import open_gguf
from worker.models.mixture.sizes import predict_sizes
from worker.models.sizes import predict_file_sizes

pytestmark = pytest.mark.integration
PLAIN = [quant for quant in QuantType if not QUANT_TYPES[quant].needs_imatrix]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model directory and the unquantized GGUF that a job makes of it. Its rows fit every type."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny_base(directory / "base", hidden_size=256, intermediate_size=512)
    convert(base, directory / "base.gguf", naming=Naming(metadata=describe(base)))
    return base, directory / "base.gguf"


def trainpack(*arguments: object) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "api_client.cli", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("TRAINPACK_")},
        timeout=240,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_predicted_sizes_are_those_of_the_files_that_quantize_makes(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, gguf = models
    code, of_file = trainpack("recommend", gguf, "--target", "gpu-8g", "--context", "2048")
    assert code == 0
    code, of_directory = trainpack("recommend", base, "--target", "gpu-8g", "--context", "2048")
    assert code == 0
    predicted = {one["quant_type"]: one["file_bytes"] for one in of_file["choices"]}
    assert predicted == {one["quant_type"]: one["file_bytes"] for one in of_directory["choices"]}
    assert of_file["cache_bytes"] == of_directory["cache_bytes"] > 0
    assert of_file["buffer_bytes"] == of_directory["buffer_bytes"] > 0
    names = [quant.value for quant in PLAIN]
    code, made = trainpack("quantize", gguf, "-q", ",".join(names), "-o", tmp_path)
    assert (code, made["failed"]) == (0, [])
    sizes = {one["quant_type"]: Path(one["paths"][0]).stat().st_size for one in made["files"]}
    assert sizes == {name: predicted[name] for name in names}


def test_a_recipe_with_the_models_directory_is_chosen_by_measurement(models: tuple[Path, Path]) -> None:
    base, gguf = models
    code, found = trainpack("recipe", gguf, "--model", base, "-q", "fit:like:Q4_K_M")
    assert code == 0, found
    assert found["measured_kld"]["value"] > 0
    assert found["predicted_kld"] > 0
    _, sizes = trainpack("recommend", gguf)
    (stock,) = [one["file_bytes"] for one in sizes["choices"] if one["quant_type"] == "Q4_K_M"]
    assert found["size_bytes"] <= stock + 1024  # its header names the matrix that it is made with
    assert any(line.startswith("blk.0.ffn_down.weight=") for line in found["recipe"])


def test_what_is_told_of_shards_is_true_of_them(models: tuple[Path, Path], tmp_path: Path) -> None:
    _, gguf = models
    code, made = trainpack("quantize", gguf, "-q", "F32", "-o", tmp_path, "--split-max-size", "1M")
    assert code == 0
    (file,) = made["files"]
    assert len(file["shards"]) > 1
    assert [shard["path"] for shard in file["shards"]] == file["paths"]
    for shard in file["shards"]:
        data = Path(shard["path"]).read_bytes()
        assert (shard["size_bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_type_that_needs_an_imatrix_is_predicted_with_its_mixture(models: tuple[Path, Path]) -> None:
    base, gguf = models
    quant = QuantType.IQ3_XXS
    with open_gguf(gguf) as file:
        without, made = (
            predict_sizes(file.tensors, [quant], metadata=file.metadata, has_imatrix=matrix)[quant].file_bytes
            for matrix in (False, True)
        )
    assert without != made, "the matrix changes this mixture"
    assert [predict_file_sizes(model)[1][quant] for model in (gguf, base)] == [made, made]


def test_a_matrix_is_computed_with_the_models_directory_and_kept(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, gguf = models
    text = tmp_path / "own.txt"
    text.write_text("The harbour of Quillhaven lies in the north of the island. " * 60)
    own = ("--model", base, "--calibration", text, "--chunks", "2")
    code, made = trainpack("quantize", gguf, "-q", "IQ2_M", *own, "-o", tmp_path / "out")
    assert code == 0, made
    kept = tmp_path / "out" / "base.imatrix.gguf"
    with open_gguf(kept) as file:
        assert file.metadata["imatrix.datasets"].value == ["own.txt"]
        assert file.metadata["imatrix.chunk_count"].value == 2
    code, again = trainpack("quantize", gguf, "-q", "IQ2_M", "--imatrix", kept, "-o", tmp_path / "again")
    assert code == 0, again
    assert again["files"][0]["sha256"] == made["files"][0]["sha256"]
    code, there = trainpack("quantize", gguf, "-q", "IQ2_S", *own, "-o", tmp_path / "out")
    assert (code, there["error"]["code"]) == (2, "output_exists")
    assert str(kept) in there["error"]["remedy"]
    for arguments, flag in ((own[2:], "--model"), (("--imatrix", kept, *own), "--imatrix")):
        code, refused = trainpack("quantize", gguf, "-q", "IQ2_M", *arguments, "-o", tmp_path / "no")
        assert (code, refused["error"]["code"]) == (2, "request_invalid")
        assert flag in refused["error"]["remedy"]


def test_inputs_that_are_no_model_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    _, gguf = models
    (tmp_path / "text.gguf").write_text("not a model")
    for arguments, error in (
        (("recommend", tmp_path / "gone"), "checkpoint_not_found"),
        (("recommend", tmp_path), "checkpoints_empty"),
        (("recommend", tmp_path / "text.gguf"), "gguf_invalid"),
        (("recommend", gguf, "--target", "gpu-16g"), "request_invalid"),
        (("quantize", tmp_path / "gone.gguf", "-q", "Q8_0", "-o", tmp_path), "gguf_invalid"),
        (("quantize", gguf, "-q", "Q9", "-o", tmp_path), "quant_type_unknown"),
        (("quantize", gguf, "-q", "Q8_0,q8_0", "-o", tmp_path), "quant_type_duplicate"),
        (("quantize", gguf, "-o", tmp_path), "request_invalid"),
    ):
        code, document = trainpack(*arguments)
        assert (code, document["error"]["code"]) == (2, error), arguments

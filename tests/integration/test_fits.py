"""Fits through the real service: files within their bounds, recipes that make them again, refusals before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api_client import ArtifactKind, ErrorCode, Job, StageName
from api_client.contract.quant_types import QuantType
from api_client.contract.recipe import RecipeOptions, recipe_lines
from tests.integration.harness import Installation
from tests.tiny import TEXT, tiny_base, tiny_checkpoint
from worker.models.imatrix.load import load_imatrix
from worker.models.mixture.recipe import Recipe, Recipes
from worker.models.quantize.engine import quantize_file
from worker.storage.checksums import parse_checksums, sha256_file


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose rows K-quants fit, and a text to calibrate on."""
    directory = tmp_path_factory.mktemp("model")
    base = tiny_base(directory / "base", hidden_size=256, intermediate_size=512, num_hidden_layers=3)
    text = directory / "text.txt"
    text.write_text("\n".join(TEXT * 40))
    return {
        "base_model": str(base),
        "checkpoint": str(tiny_checkpoint(base, directory / "run")),
        "imatrix": {"calibration": str(text), "chunks": 2},
        "evaluation": {"level": "off"},
    }


def published(job: Job) -> Path:
    assert job.error is None, job.error
    return Path(str(job.request.output_dir))


def fit_facts(directory: Path) -> dict[str, dict[str, Any]]:
    files = json.loads((directory / "manifest.json").read_text())["files"]
    return {file["name"]: file["facts"]["fit"] for file in files if "fit" in file["facts"]}


def test_fits_keep_their_bounds_beside_other_types_and_recipes_make_them_again(
    real: Installation, wanted: dict[str, Any]
) -> None:
    types = ["Q4_K_M", "fit:like:Q4_K_M", "fit:kld:0.001", "fit:16bpw", "fit:target:cpu"]
    kept = {"tensor_types": ["attn_v=q8_0"]}
    job = real.wait(real.submit("fits", quant_types=types, recipe=kept, **wanted), 300)
    directory = published(job)
    assert StageName.SENSITIVITY in job.plan
    labels = ["FIT-Q4_K_M", "FIT-kld0.001", "FIT-16.00bpw", "FIT-cpu"]
    files = {label: directory / f"merged_model-{label}.gguf" for label in labels}
    stock = (directory / "merged_model-Q4_K_M.gguf").stat().st_size
    assert files["FIT-Q4_K_M"].stat().st_size <= stock < files["FIT-cpu"].stat().st_size
    facts = fit_facts(directory)
    assert facts["merged_model-FIT-Q4_K_M.gguf"]["limit_bytes"] == stock
    checksums = parse_checksums((directory / "SHA256SUMS").read_text())
    matrix = load_imatrix(directory / "merged_model.imatrix.gguf")
    for label, file in files.items():
        told = facts[file.name]
        assert told["size_bytes"] == file.stat().st_size
        assert told["measured"]["mean_kld"]["value"] >= 0
        assert told["predicted_kld"] > 0
        recipe = directory / f"merged_model-{label}.recipe.txt"
        assert recipe.name in checksums
        lines = recipe_lines(recipe.read_text())
        assert "^blk\\.0\\.attn_v\\.weight$=q8_0" in lines
        again = directory.parent / "again.gguf"
        made = Recipes(Recipe.of(RecipeOptions(tensor_types=lines)))
        kind = QuantType(told["file_type"])
        quantize_file(directory / "merged_model.gguf", {kind: again}, imatrix=matrix, recipes=made)
        assert sha256_file(again) == checksums[file.name]
    kinds = [artifact.kind for artifact in job.outputs]
    assert kinds.count(ArtifactKind.RECIPE) == 4
    assert ArtifactKind.SENSITIVITY in kinds
    curve = job.curve
    assert curve is not None
    points = {point.name: point for point in curve.stock}
    assert points["Q4_K_M"].size_bytes == stock
    assert points["Q4_K_M"].fit_kld == pytest.approx(facts["merged_model-FIT-Q4_K_M.gguf"]["predicted_kld"], rel=0.5)
    assert curve.fit[0].kld > curve.fit[-1].kld
    # there is room for all of the model in both: made once, linked, said
    assert files["FIT-16.00bpw"].samefile(files["FIT-cpu"])
    said = [event.message for event in real.client.events(job.id) if "made once, linked" in event.message]
    assert len(said) == 1


def test_where_nothing_beats_the_stock_mixture_it_is_what_is_written(
    real: Installation, wanted: dict[str, Any]
) -> None:
    fit = {"types": "q8_0"}
    job = real.wait(real.submit("stock", quant_types=["fit:like:Q8_0", "Q8_0"], fit=fit, **wanted), 300)
    directory = published(job)
    (facts,) = fit_facts(directory).values()
    assert facts["origin"] == "Q8_0"
    assert facts["measured"]["mean_kld"]["value"] >= 0
    assert (directory / "merged_model-FIT-Q8_0.gguf").samefile(directory / "merged_model-Q8_0.gguf")
    said = [event.message for event in real.client.events(job.id)]
    assert any("the stock mixture of Q8_0; none was better" in message for message in said)


def test_what_cannot_be_is_refused_before_any_work(real: Installation, wanted: dict[str, Any]) -> None:
    unmatched = {"quant_types": ["fit:4.5bpw"], "recipe": {"tensor_types": ["ffn_gate_exps=q8_0"]}}
    cases: list[tuple[dict[str, Any], ErrorCode, str]] = [
        ({"quant_types": ["fit:100000"]}, ErrorCode.FIT_IMPOSSIBLE, "there are files from"),
        ({"quant_types": ["fit:1GB"]}, ErrorCode.FIT_IMPOSSIBLE, "there are files from"),
        ({"quant_types": ["fit:target:2MB"]}, ErrorCode.FIT_IMPOSSIBLE, "0 bytes are left for the file"),
        (unmatched, ErrorCode.RECIPE_INVALID, "matches no tensor"),
    ]
    for changes, code, said in cases:
        job = real.wait(real.submit("refused", **wanted, **changes), 120)
        assert job.error is not None
        assert (job.error["code"], job.error.get("stage")) == (code, "prepare")
        assert said in job.error["message"]

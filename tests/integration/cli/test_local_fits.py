"""``trainpack recipe`` and ``quantize -q fit:`` on a kept file, with the sensitivities of an earlier job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.recipe import recipe_lines
from tests.golden.models import MODELS, build_imatrix, build_model, tensor_list
from worker.models.imatrix.sums import TensorSums
from worker.models.sensitivity.gguf_form import write_sensitivity
from worker.models.sensitivity.sums import Sensitivity, TensorSensitivity

MODEL = "dense"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its matrix, and sensitivities that differ by layer and tensor."""
    folder = tmp_path_factory.mktemp("kept")
    build_model(folder / "model.gguf", MODEL)
    build_imatrix(folder / "model.imatrix.gguf", MODEL)
    generator = np.random.default_rng(7)
    entries = {}
    for name, shape, _ in tensor_list(MODELS[MODEL]):
        if len(shape) > 1 and "rope" not in name:
            sums = TensorSums(generator.random((1, shape[0])).astype(np.float32), np.ones(1, np.float32))
            gradients = generator.random((1, shape[1])) * float(generator.lognormal(0, 3))
            entries[name] = TensorSensitivity(sums, gradients.astype(np.float32))
    write_sensitivity(folder / "model.sensitivity.gguf", Sensitivity("text", "", 100, 50, "", 0, entries))
    return folder


def trainpack(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "api_client.cli", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


FITS = ("--sensitivity", "model.sensitivity.gguf", "--imatrix", "model.imatrix.gguf")


def document(folder: Path, *arguments: str) -> dict[str, Any]:
    code, out, err = trainpack(folder, *arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def test_a_recipe_is_printed_and_the_file_that_it_makes_is_the_fit(folder: Path) -> None:
    arguments = ("-q", "fit:like:Q4_K_M", *FITS, "--fit-types", "k+iq", "--tensor-type", "attn_v=q8_0")
    code, text, said = trainpack(folder, "recipe", "model.gguf", *arguments)
    assert code == 0, said
    assert "mean KLD predicted" in said
    lines = recipe_lines(text)
    assert "^blk\\.1\\.attn_v\\.weight$=q8_0" in lines
    told = document(folder, "recipe", "model.gguf", *arguments)
    assert [line.partition("=")[2].upper() for line in lines] == [line.partition("=")[2] for line in told["recipe"]]
    (fit,) = document(folder, "quantize", "model.gguf", *arguments, "-o", "fit")["files"]
    assert fit["size_bytes"] == told["size_bytes"]
    assert (folder / "fit/model-FIT-Q4_K_M.recipe.txt").read_text() == text
    again = ("--imatrix", "model.imatrix.gguf", "--tensor-type-file", "fit/model-FIT-Q4_K_M.recipe.txt")
    (same,) = document(folder, "quantize", "model.gguf", "-q", told["file_type"], *again, "-o", "same")["files"]
    assert same["sha256"] == fit["sha256"]


def test_the_curve_has_stock_types_above_the_line_of_fits(folder: Path) -> None:
    curve = document(folder, "recommend", "model.gguf", "--sensitivity", "model.sensitivity.gguf")["curve"]
    stock = {point["name"]: point for point in curve["stock"]}
    assert stock["Q4_K_M"]["fit_kld"] < stock["Q4_K_M"]["kld"]
    sizes, klds = ([point[key] for point in curve["fit"]] for key in ("size_bytes", "kld"))
    assert sizes == sorted(sizes)
    assert klds == sorted(klds, reverse=True)
    assert sizes[0] <= stock["Q2_K"]["size_bytes"] < stock["Q8_0"]["size_bytes"] <= sizes[-1]
    assert curve["targets"]["mobile"] < 4 * 2**30


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("-q", "fit:like:Q4_K_M"), "request_invalid"),
        (("-q", "fit:3TB", *FITS), "fit_impossible"),
        (("-q", "fit:bytes", *FITS), "fit_invalid"),
        (("-q", "fit:4bpw", "--sensitivity", "model.gguf"), "sensitivity_invalid"),
        (("-q", "fit:5bpw", *FITS, "--tensor-type", "no_such=q8_0"), "recipe_invalid"),
    ],
)
def test_bad_input_is_refused(folder: Path, arguments: tuple[str, ...], code: str) -> None:
    exit_code, out, _ = trainpack(folder, "recipe", "model.gguf", *arguments, "--json")
    assert exit_code == 2
    assert json.loads(out)["error"]["code"] == code

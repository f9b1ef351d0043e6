"""Files made by a recipe equal those of llama-quantize; what cannot be done is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from api_client.contract.recipe import RecipeOptions, exact_name, exact_pattern, recipe_lines, recipe_text
from tests.golden.models import MODELS, build_imatrix, build_model
from tests.golden.record_files import digest
from tests.golden.record_recipes import CASES, FILE_KIND, FILE_LABEL, RECORD, RecipeCase, recipe_file
from worker.models.gguf.reader import open_gguf
from worker.models.imatrix.load import load_imatrix
from worker.models.mixture.recipe import Recipe, Recipes
from worker.models.mixture.sizes import predict_sizes
from worker.models.quantize.engine import quantize_file

RECORDED = json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for name in MODELS:
        build_model(folder / f"{name}.gguf", name)
        build_imatrix(folder / f"{name}.imatrix.gguf", name)
    return folder


def recipe(**options: object) -> Recipe:
    return Recipe.of(RecipeOptions.model_validate(options))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{case.kind}-{len(case.recipe)}")
def test_a_recipe_makes_the_file_of_llama_quantize(folder: Path, case: RecipeCase) -> None:
    kind, asked = QuantType(case.kind), recipe(**case.recipe)
    matrix = load_imatrix(folder / f"{case.model}.imatrix.gguf") if case.matrix else None
    source, target = folder / f"{case.model}.gguf", folder / "made.gguf"
    with open_gguf(source) as opened:
        stamp = matrix.stamp if matrix else None
        predicted = predict_sizes(opened.tensors, [kind], metadata=opened.metadata, recipe=asked, stamp=stamp)[kind]
    made = quantize_file(source, {kind: target}, imatrix=matrix, recipes=Recipes(asked))
    assert made.failed == {}
    assert [target.stat().st_size, digest(target)] == RECORDED[case.label]
    assert predicted.file_bytes == target.stat().st_size


def test_a_recipe_file_makes_what_llama_quantize_makes_of_it(folder: Path) -> None:
    target = folder / "made.gguf"
    made = Recipes(recipe(tensor_types=recipe_lines(recipe_file())))
    quantize_file(
        folder / "dense.gguf",
        {QuantType(FILE_KIND): target},
        imatrix=load_imatrix(folder / "dense.imatrix.gguf"),
        recipes=made,
    )
    assert [target.stat().st_size, digest(target)] == RECORDED[FILE_LABEL]


@pytest.mark.parametrize(
    ("model", "options", "part", "said"),
    [
        ("dense", {"tensor_types": ["attn_q=q8_0", "ffn_gate_exps=q4_k"]}, "recipe.tensor_types", "ffn_gate_exps=q4_k"),
        ("dense", {"tensor_types": ["attn_norm=q8_0"]}, "recipe.tensor_types", "no tensor that is quantized"),
        ("tied", {"tensor_types": ["attn_q=q4_k"]}, "recipe", "rows of 288"),
        ("tied", {"token_embedding_type": "q6_k"}, "recipe", "rows of 288"),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    folder: Path, model: str, options: dict[str, object], part: str, said: str
) -> None:
    with pytest.raises(PackagingError, match=said) as caught:
        quantize_file(folder / f"{model}.gguf", {QuantType.Q4_K_M: folder / "x"}, recipes=Recipes(recipe(**options)))
    assert caught.value.code is ErrorCode.RECIPE_INVALID
    assert caught.value.fields["field"] == part
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("options", "tensor"),
    [
        ({"tensor_types": ["attn_q=iq2_s"]}, "blk.0.attn_q.weight"),
        ({"token_embedding_type": "iq1_s"}, "token_embd.weight"),
    ],
)
def test_a_type_that_needs_a_matrix_needs_it_in_a_recipe_too(folder: Path, options: object, tensor: str) -> None:
    asked = Recipes(recipe(**options))  # type: ignore[arg-type]
    with pytest.raises(PackagingError) as caught:
        quantize_file(folder / "dense.gguf", {QuantType.Q4_K_M: folder / "x"}, recipes=asked)
    assert caught.value.code is ErrorCode.IMATRIX_REQUIRED
    assert caught.value.fields["tensor"] == tensor


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("attn_q", ErrorCode.RECIPE_INVALID),
        ("=q4_k", ErrorCode.RECIPE_INVALID),
        ("attn_q=", ErrorCode.RECIPE_INVALID),
        ("attn_(q=q4_k", ErrorCode.RECIPE_INVALID),
        ("(?i)attn=q4_k", ErrorCode.RECIPE_INVALID),
        ("attn_q=q9_k", ErrorCode.TENSOR_TYPE_UNKNOWN),
        ("attn_q=Q8_1", ErrorCode.TENSOR_TYPE_UNKNOWN),
    ],
)
def test_a_line_that_cannot_be_read_is_refused(line: str, code: ErrorCode) -> None:
    with pytest.raises(PackagingError) as caught:
        recipe_lines(f"ffn_up=q8_0\n{line}\n")
    assert caught.value.code is code


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "a+b", "x[0]", "v\\w", "plain"])
def test_a_written_recipe_names_one_tensor_and_is_read_again(name: str) -> None:
    assert exact_name(exact_pattern(name)) == name
    other = recipe(tensor_types=recipe_lines(recipe_text([(name, "Q6_K"), (f"x{name}", "Q4_K")])))
    assert [str(kind and kind.name) for kind in map(other.line_type, (name, f"x{name}", f"{name}x"))] == [
        "Q6_K",
        "Q4_K",
        "None",
    ]

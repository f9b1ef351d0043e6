"""Files that embed and rank are held to what transformers makes of the model, and refused where they differ."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import NOWHERE_ELSE
from tests.field.encoders import EMBEDDERS, RERANKERS, save_embedder, save_reranker
from tests.field.vocabularies import known_with_ends
from tests.unit.convert.convert_samples import read_gguf, teach_pre_tokenizers
from worker.models.checkpoint import open_base_model
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.models.convert.sentence_modules import read_sentence_modules
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.verify.ask import Question
from worker.models.verify.likeness import compare_scores, compare_vectors, same_order
from worker.models.verify.reference import TrainedModel
from worker.models.verify.witness import Proof, Witness, prompted
from worker.setting import ON_THIS_MACHINE

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open


@pytest.fixture(autouse=True)
def _known_pre_tokenizers() -> Iterator[None]:
    with known_with_ends():
        yield


def trained(directory: Path) -> TrainedModel:
    tokenizer = find_tokenizer(None, directory)
    modules = read_sentence_modules(tokenizer.places, NOWHERE_ELSE)
    return TrainedModel(open_base_model(directory), None, tokenizer, modules, ON_THIS_MACHINE)


def prove(directory: Path, file: Path) -> Proof:
    return Witness(lambda: trained(directory)).prove(Question(str(file), threads=1))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_gives_the_trained_model_s_vectors(name: str, dtype: str, tmp_path: Path) -> None:
    model = save_embedder(name, tmp_path / "model")
    convert(model, tmp_path / "out.gguf", gguf_dtype=dtype)
    proof = prove(model, tmp_path / "out.gguf")
    assert proof.likeness is not None
    assert proof.likeness.least > (0.99999 if dtype == "f32" else 0.999)
    assert proof.likeness.in_order
    assert not proof.warns
    assert proof.did.startswith("embeds texts as vectors of 64 numbers, cosine ")


@pytest.mark.parametrize("name", RERANKERS)
def test_a_reranker_gives_the_trained_model_s_scores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_pre_tokenizers(monkeypatch)
    model = save_reranker(name, tmp_path / "model")
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    proof = prove(model, tmp_path / "out.gguf")
    assert proof.likeness is not None
    assert proof.likeness.least > 0.999
    assert proof.likeness.in_order
    assert proof.did.startswith("ranks, scores within ")


def test_the_reference_is_transformers_own_forward(tmp_path: Path) -> None:
    """Layer by layer, with the rows of the texts' tokens alone, the vectors are those of the whole model."""
    from transformers import AutoModel, AutoTokenizer

    model = save_embedder("bert", tmp_path / "model")
    ours = trained(model)
    texts = prompted(ours.modules)
    assert texts[0].startswith("query: ")
    assert texts[1].startswith("passage: ")
    whole, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    for text, vector in zip(texts, ours.vectors(texts, "mean"), strict=True):
        with torch.no_grad():
            states = whole(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert torch.allclose(states.mean(0), torch.tensor(vector), atol=1e-5)


def test_a_file_of_another_pooling_is_refused(tmp_path: Path) -> None:
    model = save_embedder("bert", tmp_path / "model")
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    convert(tmp_path / "other", tmp_path / "out.gguf", gguf_dtype="f32")
    with pytest.raises(PackagingError) as caught:
        prove(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.OUTPUT_DOES_NOT_LOAD
    assert (
        "out.gguf answers otherwise in llama.cpp than the trained model does: its vectors have" in caught.value.message
    )


def test_a_reranker_of_another_head_is_refused(tmp_path: Path) -> None:
    model = save_reranker("xlm-roberta", tmp_path / "model")
    shutil.copytree(model, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["classifier.out_proj.weight"] *= -1
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    convert(tmp_path / "other", tmp_path / "out.gguf", gguf_dtype="f32")
    with pytest.raises(PackagingError, match=r"answers otherwise in llama\.cpp") as caught:
        prove(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.OUTPUT_DOES_NOT_LOAD


def test_a_text_that_is_cut_otherwise_is_the_reason(tmp_path: Path) -> None:
    model = save_embedder("bert", tmp_path / "model")
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    config = model / "tokenizer_config.json"
    tokenizer = (model / "tokenizer.json").read_text().replace('"lowercase": true', '"lowercase": false')
    (model / "tokenizer.json").write_text(tokenizer)
    config.write_text(config.read_text().replace('"do_lower_case": true', '"do_lower_case": false'))
    with pytest.raises(PackagingError, match=r"it cuts 'query: How do I reset my password\?' into other tokens"):
        prove(model, tmp_path / "out.gguf")


def test_what_transformers_does_not_have_is_told_and_not_refused(tmp_path: Path) -> None:
    model = save_embedder("bert", tmp_path / "model")
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"BertModel"', '"NobodysModel"'))
    proof = prove(model, tmp_path / "out.gguf")
    assert proof.warns
    assert proof.likeness is None
    assert "it is not compared with the trained model: " in proof.did


def test_dense_layers_decide(tmp_path: Path) -> None:
    """A file without them gives other vectors: of this length, they are refused by the cosine."""
    model = save_embedder("embedding-gemma", tmp_path / "model")
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32", naming=Naming(model_name="M"))
    assert {"dense_2.weight", "dense_3.weight"} <= read_gguf(tmp_path / "out.gguf")[1].keys()
    save_file({"linear.weight": torch.randn(96, 64)}, model / "2_Dense" / "model.safetensors")
    with pytest.raises(PackagingError, match="its vectors have a cosine"):
        prove(model, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("trained_scores", "read", "ordered"),
    [
        ([0.1, 0.5, 0.9], [0.2, 0.6, 0.7], True),
        ([0.1, 0.5, 0.9], [0.6, 0.5, 0.7], False),
        ([0.500, 0.505, 0.9], [0.505, 0.500, 0.7], True),
        ([0.1, 0.9], [0.5, 0.5], False),
    ],
)
def test_an_order_counts_where_the_trained_model_tells_apart(
    trained_scores: list[float], read: list[float], ordered: bool
) -> None:
    assert same_order(trained_scores, read, 0.01) is ordered


def test_figures_of_a_comparison() -> None:
    vectors: Any = [[1.0, 0.0], [0.0, 1.0]] * 2
    assert compare_vectors(vectors, [[2.0, 0.0], [0.0, 3.0]] * 2).least == pytest.approx(1.0)
    assert compare_vectors(vectors, [[1.0, 1.0], [0.0, 1.0]] * 2).least == pytest.approx(0.5**0.5)
    assert compare_scores([1.0, 3.0], [1.0, 3.4]).least == pytest.approx(0.9)
    with pytest.raises(ValueError, match="vectors of 1 numbers, where the trained model gives 2"):
        compare_vectors(vectors, [[1.0]] * 4)

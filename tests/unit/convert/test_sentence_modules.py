"""What sentence-transformers says beside a model is in the file, told, or refused by the name of the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import NOWHERE_ELSE
from tests.unit.convert.consulted_samples import MODULES, SAMPLES, put, save_pooling
from tests.unit.convert.convert_samples import read_gguf, teach_pre_tokenizers, upstream_convert
from tests.unit.convert.test_convert_equality import assert_same_file
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.models.convert.sentence_modules import read_sentence_modules

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open


@pytest.fixture(autouse=True)
def _known_pre_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    teach_pre_tokenizers(monkeypatch)


def refused(directory: Path) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        read_sentence_modules([directory], NOWHERE_ELSE)
    return caught.value


def modules(directory: Path, kind: str, path: str, config: dict[str, Any]) -> None:
    put(directory / "modules.json", [*MODULES[:1], {"idx": 1, "name": "1", "path": path, "type": kind}])
    put(directory / path / "config.json", config)


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.LSTM", "sentence_transformers.models.WeightedLayerPooling", "mine.Whiten"]
)
def test_a_module_that_nobody_knows_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    modules(tmp_path, kind, "1_Mine", {})
    error = refused(tmp_path)
    assert error.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert f"has the module {kind} in '1_Mine'" in error.message
    assert error.fields == {"module": kind}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pooling_mode_max_tokens": True}, "pools by max_tokens,"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "pools by cls_token and mean_tokens,"),
        ({"pooling_mode": "weightedmean"}, "pools by weightedmean,"),
        ({"pooling_mode": ["mean", "max"]}, "pools by max and mean,"),
    ],
)
def test_a_pooling_that_llama_cpp_has_not_is_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Upstream takes the first kind that it knows, and the vectors are others."""
    modules(tmp_path, "sentence_transformers.models.Pooling", "1_Pooling", config)
    error = refused(tmp_path)
    assert error.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert f"1_Pooling {said}" in error.message


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_kinds_of_pooling_are_read_in_both_forms(config: dict[str, Any], pooling: str, tmp_path: Path) -> None:
    modules(tmp_path, "sentence_transformers.sentence_transformer.modules.pooling.Pooling", "1_Pooling", config)
    assert read_sentence_modules([tmp_path], NOWHERE_ELSE).pooling == pooling


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"bias": True}, "has a bias"),
        ({"bias": False, "activation_function": "torch.nn.modules.activation.Tanh"}, "has Tanh"),
    ],
)
def test_a_dense_layer_that_is_more_than_a_matrix_is_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    modules(tmp_path, "sentence_transformers.models.Dense", "2_Dense", config)
    error = refused(tmp_path)
    assert error.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert f"the dense layer 2_Dense {said}" in error.message


def test_a_dense_layer_without_its_weights_is_refused(tmp_path: Path) -> None:
    modules(tmp_path, "sentence_transformers.models.Dense", "2_Dense", {"bias": False})
    assert refused(tmp_path).fields == {"file": "2_Dense/model.safetensors"}


def test_a_dense_layer_that_the_file_has_no_place_for_is_refused(tmp_path: Path) -> None:
    SAMPLES["bert"](tmp_path)
    save_pooling(tmp_path, "mean_tokens", "2_Dense")
    with pytest.raises(PackagingError) as caught:
        convert(tmp_path, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert "bert files have no place for the dense layers after the pooling: 2_Dense" in caught.value.message


def test_dense_layers_that_the_file_has_a_place_for_are_in_it_each_time(tmp_path: Path) -> None:
    """Upstream's class keeps what it found of one model for the next of the process."""
    model = tmp_path / "model"
    model.mkdir()
    SAMPLES["embedding-gemma"](model)
    for out in ("first.gguf", "second.gguf"):
        convert(model, tmp_path / out, gguf_dtype="f32", naming=Naming(model_name="M"))
    theirs = upstream_convert(model, tmp_path / "theirs.gguf", "ALL_F32", sentence_transformers_dense_modules=True)
    for out in ("first.gguf", "second.gguf"):
        assert_same_file(tmp_path / out, theirs)
    metadata, tensors = read_gguf(tmp_path / "second.gguf")
    assert [name for name in tensors if name.startswith("dense")] == ["dense_2.weight", "dense_3.weight"]
    assert metadata["gemma-embedding.dense_2_feat_out"] == 48

    save_file({"linear.weight": torch.zeros(48, 32)}, model / "2_Dense" / "model.safetensors")
    convert(model, tmp_path / "second.gguf", gguf_dtype="f32", naming=Naming(model_name="M"))
    assert not read_gguf(tmp_path / "second.gguf")[1]["dense_2.weight"].any()


def test_prompts_are_told(tmp_path: Path) -> None:
    save_pooling(tmp_path)
    said = {"prompts": {"query": "query: ", "document": "", "odd": 3}, "default_prompt_name": "query"}
    put(tmp_path / "config_sentence_transformers.json", said)
    found = read_sentence_modules([tmp_path], NOWHERE_ELSE)
    assert (found.prompts, found.default_prompt) == ({"query": "query: "}, "query")
    assert found.notes() == (
        "the model was trained with prompts before its texts, which no GGUF file holds (query: 'query: ', query where "
        "none is named)",
    )
    assert read_sentence_modules([tmp_path / "elsewhere"], NOWHERE_ELSE).notes() == ()

"""Prediction layers (MTP, NextN): kept, left out and grafted files are upstream's, byte for byte, and load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.convert_samples import read_gguf, save_adapter, upstream_convert
from tests.unit.convert.draft_samples import (
    FAMILIES,
    KEPT,
    NO_PLACE,
    WEIGHTS,
    add_draft_head,
    change_config,
    is_predicting,
    save_predicting,
    upstream_without_head,
)
from tests.unit.convert.draft_samples import without_draft_head as stripped
from tests.unit.convert.test_convert_equality import assert_same_file
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.draft_head import with_draft_head_of, without_draft_head
from worker.models.convert.metadata import Naming
from worker.models.convert.nextn import check_announced, prediction_tensors
from worker.models.convert.pipeline import convert
from worker.models.verify.ask import Question
from worker.models.verify.load import loader_installed, prove

M = Naming(model_name="M")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model of a family, made once."""
    root = tmp_path_factory.mktemp("predicting")

    def made(name: str) -> Path:
        directory = root / name / "model"
        return directory if directory.exists() else save_predicting(name, directory)

    return made


def loads(path: Path) -> bool:
    """Whether llama.cpp loads a file and writes; true where it is not installed."""
    return not loader_installed() or bool(prove(Question(str(path))))


@pytest.mark.parametrize("name", KEPT)
def test_what_is_there_is_kept_and_what_training_dropped_is_grafted(
    name: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = model(name)
    theirs = upstream_convert(whole, tmp_path / "theirs.gguf")
    metadata, tensors = read_gguf(theirs)
    layers = metadata[f"{metadata['general.architecture']}.nextn_predict_layers"]
    assert layers == FAMILIES[name].layers
    assert sum("nextn.eh_proj" in key for key in tensors) == layers

    convert(whole, tmp_path / "kept.gguf", naming=M)
    assert_same_file(tmp_path / "kept.gguf", theirs)
    assert loads(tmp_path / "kept.gguf")

    # what training left says nothing of them, as transformers' own classes do not know the key
    tuned = stripped(name, whole, tmp_path / "tuned" / "model", announced=False)
    grafted = with_draft_head_of(open_base_model(tuned), open_base_model(whole))
    convert(grafted, tmp_path / "grafted.gguf", naming=M)
    assert_same_file(tmp_path / "grafted.gguf", theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_out_is_not_announced(
    name: str, model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As upstream's ``--no-mtp`` has it; where the class knows no such switch, as if the weights had never had any."""
    whole = open_base_model(model(name))
    theirs = upstream_without_head(name, whole.directory, tmp_path / "theirs.gguf", monkeypatch)
    metadata, tensors = read_gguf(theirs)
    assert metadata.get(f"{metadata['general.architecture']}.nextn_predict_layers", 0) == 0
    assert not any("nextn" in key or key.startswith("blk.2.") for key in tensors)

    convert(without_draft_head(whole), tmp_path / "dropped.gguf", naming=M)
    assert_same_file(tmp_path / "dropped.gguf", theirs)
    assert loads(tmp_path / "dropped.gguf")
    # and of weights that announce layers which training dropped
    tuned = stripped(name, whole.directory, tmp_path / "tuned" / "model")
    convert(tuned, tmp_path / "tuned.gguf", naming=M)
    assert_same_file(tmp_path / "tuned.gguf", theirs)


@pytest.mark.parametrize("name", NO_PLACE)
def test_what_upstream_has_no_place_for_is_left_out(
    name: str, model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = convert(model(name), tmp_path / "ours.gguf", naming=M)
    assert_same_file(
        tmp_path / "ours.gguf", upstream_without_head(name, model(name), tmp_path / "theirs.gguf", monkeypatch)
    )
    assert set(result.left_out) == {
        key for key in open_base_model(model(name)).tensors if is_predicting(name, key, model(name))
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_their_tensors_are_known_by_their_names(name: str, model: Callable[[str], Path]) -> None:
    base = open_base_model(model(name))
    expected = {key for key in base.tensors if is_predicting(name, key, base.directory)}
    assert prediction_tensors(base.text_config, base.tensors) == expected
    assert expected


def test_names_of_other_families() -> None:
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    theirs = ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_linear_proj.0.weight", "mtp.layers.0.norm.weight",
              "model.language_model.layers.2.eh_proj.weight", "model.mtp_layers.0.input_layernorm.weight"]  # fmt: skip
    others = ["model.layers.1.norm.weight", "model.visual.layers.7.norm.weight", "model.norm.weight",
              "talker.code_predictor.small_to_mtp_projection.weight"]  # fmt: skip
    assert prediction_tensors(config, theirs + others) == set(theirs)
    # a layer too many of a config that has no word for such layers is a fault for the converter to find
    assert prediction_tensors({"num_hidden_layers": 2}, ["model.layers.2.norm.weight"]) == set()


def test_what_an_adapter_changes_in_them_is_not_lost_without_a_word(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT finds them by the names of their modules; kept, the change is in the file, left out, it is said."""
    whole = model("glm4-moe")
    adapter = save_adapter(whole, tmp_path / "adapter", target_modules=["o_proj"])
    weights = load_file(adapter / "adapter_model.safetensors")
    own = {key: tensor for key, tensor in weights.items() if "layers.1." in key}
    weights |= {key.replace("layers.1.", "layers.2."): tensor.clone() for key, tensor in own.items()}
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    base = open_base_model(whole)
    build_overlay(open_adapter(adapter), base, tmp_path / "overlay", precision="base")
    overlay = Overlay.load(tmp_path / "overlay")
    plain = convert(base, tmp_path / "plain.gguf")
    kept = convert(base, tmp_path / "kept.gguf", overlay=overlay)
    dropped = convert(without_draft_head(base), tmp_path / "dropped.gguf", overlay=overlay)
    before, after = (read_gguf(result.path)[1] for result in (plain, kept))
    changed = {key for key in before if not before[key].equal(after[key])}
    assert changed == {f"blk.{number}.attn_output.weight" for number in range(3)}
    assert kept.notes == ()
    assert dropped.notes == (
        "what the adapter changes in prediction layers is left out with them: model.layers.2.self_attn.o_proj.weight",
    )
    assert read_gguf(dropped.path)[1]["blk.1.attn_output.weight"].equal(after["blk.1.attn_output.weight"])


def test_half_of_them_is_refused_unless_it_is_completed_or_left_out(tmp_path: Path) -> None:
    whole = save_predicting("glm4-moe", tmp_path / "whole")
    second = {key.replace("layers.2.", "layers.3."): tensor for key, tensor in load_file(whole / WEIGHTS).items()}
    save_file(second | load_file(whole / WEIGHTS), whole / WEIGHTS, metadata={"format": "pt"})
    change_config(whole, num_nextn_predict_layers=2)
    half = tmp_path / "half" / "whole"
    shutil.copytree(whole, half)
    kept = {key: tensor for key, tensor in load_file(half / WEIGHTS).items() if "layers.3." not in key}
    save_file(kept, half / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(PackagingError) as refused:
        convert(half, tmp_path / "half.gguf")
    assert refused.value.code is ErrorCode.BASE_MODEL_INVALID
    assert refused.value.fields["present"] == 1
    assert "draft_head `drop`" in refused.value.remedy
    convert(with_draft_head_of(open_base_model(half), open_base_model(whole)), tmp_path / "grafted.gguf", naming=M)
    assert_same_file(tmp_path / "grafted.gguf", upstream_convert(whole, tmp_path / "theirs.gguf"))
    convert(without_draft_head(open_base_model(half)), tmp_path / "dropped.gguf")
    assert "blk.2.attn_q.weight" not in read_gguf(tmp_path / "dropped.gguf")[1]


def test_a_class_that_announces_more_than_is_there_is_refused(tmp_path: Path) -> None:
    """MiMo's config says no number: upstream takes it for three, and llama.cpp would look for them."""
    base = save_predicting("mimo2", tmp_path / "base")
    kept = {key: tensor for key, tensor in load_file(base / WEIGHTS).items() if ".mtp.layers.2." not in key}
    save_file(kept, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(PackagingError) as refused:
        convert(base, tmp_path / "out.gguf")
    assert refused.value.code is ErrorCode.BASE_MODEL_INVALID
    assert refused.value.fields == {"announced": 3, "block": 4}
    assert check_announced("a", {"a.nextn_predict_layers": 1, "a.block_count": 3}, ["blk.2.x"]) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 3}, ("num_hidden_layers is 2", "3 in the base model")),
        ({"hidden_size": 64}, ("hidden_size is 32", "64 in the base model")),
        ({"model_type": "glm4"}, ("model_type is glm4_moe", "glm4 in the base model")),
    ],
)
def test_layers_of_a_base_with_other_dimensions_are_refused(
    changes: dict[str, int], said: tuple[str, str], model: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = stripped("glm4-moe", model("glm4-moe"), tmp_path / "tuned")
    other = tmp_path / "other"
    shutil.copytree(model("glm4-moe"), other)
    change_config(other, **changes)
    if "num_hidden_layers" in changes:  # a layer more, so that its prediction layer lies one further on
        tensors = load_file(other / WEIGHTS)
        more = {key.replace("layers.2.", "layers.3."): tensor.clone() for key, tensor in tensors.items()}
        save_file(tensors | more, other / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(PackagingError) as refused:
        with_draft_head_of(open_base_model(tuned), open_base_model(other))
    assert refused.value.code is ErrorCode.DRAFT_HEAD_INVALID
    for part in said:
        assert part in refused.value.message
    assert str(other) in refused.value.message


def test_layers_that_the_base_lacks_as_well_are_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = open_base_model(stripped("glm4-moe", model("glm4-moe"), tmp_path / "tuned"))
    with pytest.raises(PackagingError) as refused:
        with_draft_head_of(tuned, tuned)
    assert refused.value.code is ErrorCode.DRAFT_HEAD_INVALID
    assert "neither tuned nor its base model" in refused.value.message


def test_a_head_with_words_of_its_own_needs_the_same_vocabulary(model: Callable[[str], Path], tmp_path: Path) -> None:
    """GLM-4.5's prediction layer has an embedding of its own, with a row per token."""
    base = tmp_path / "base"
    shutil.copytree(model("glm4-moe"), base)
    tensors = load_file(base / WEIGHTS)
    tensors["model.layers.2.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    tuned = stripped("glm4-moe", base, tmp_path / "tuned" / "base")
    convert(with_draft_head_of(open_base_model(tuned), open_base_model(base)), tmp_path / "ours.gguf", naming=M)
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(base, tmp_path / "theirs.gguf"))
    assert loads(tmp_path / "ours.gguf")

    tensors = load_file(tuned / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:-64].clone()
    save_file(tensors, tuned / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(PackagingError) as refused:
        with_draft_head_of(open_base_model(tuned), open_base_model(base))
    assert "model.layers.2.embed_tokens.weight of the base model" in refused.value.message
    assert (refused.value.fields["model_has"], refused.value.fields["base_has"]) == (49088, 49152)


def test_lists_with_a_value_per_layer_go_on_over_grafted_layers(model: Callable[[str], Path], tmp_path: Path) -> None:
    """As Step 3.5's ``layer_types`` do."""
    base = tmp_path / "base"
    shutil.copytree(model("glm4-moe"), base)
    tuned = stripped("glm4-moe", base, tmp_path / "tuned", announced=False)
    change_config(base, kinds=["a", "b", "c"], others=[1, 2])
    change_config(tuned, kinds=["a", "b"], others=[1, 2])
    config = with_draft_head_of(open_base_model(tuned), open_base_model(base)).config
    assert (config["kinds"], config["others"], config["num_nextn_predict_layers"]) == (["a", "b", "c"], [1, 2], 1)


def test_a_grafted_model_notices_that_either_changed(tmp_path: Path) -> None:
    base = save_predicting("glm4-moe", tmp_path / "base")
    tuned = stripped("glm4-moe", base, tmp_path / "tuned")
    grafted = with_draft_head_of(open_base_model(tuned), open_base_model(base))
    grafted.check_unchanged()
    add_draft_head("glm4-moe", base, seed=12)
    with pytest.raises(PackagingError) as refused:
        grafted.check_unchanged()
    assert refused.value.code is ErrorCode.BASE_MODEL_INVALID

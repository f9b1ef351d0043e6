"""The projector of vision and audio models: upstream's own file, of what PEFT merged, or a refusal by name."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode, PackagingError
from tests.sighted import FAMILIES, tiny_sighted
from tests.tiny import tiny_base
from tests.unit.convert.convert_samples import read_gguf
from worker.models.adapters import Overlay, build_overlay, normalise_for_export, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.lora import export_lora
from worker.models.convert.metadata import Naming, describe
from worker.models.convert.pipeline import convert, plan_conversion
from worker.models.convert.projector import no_projector, senses_of
from worker.models.convert.upstream import load_upstream
from worker.models.sizes import predict_projector_bytes
from worker.models.verify.ask import Question
from worker.models.verify.senses import prove_projector

FLAT_TOWERS = ("gemma3", "lfm2_vl")
"""Saved by transformers 5 without the ``vision_model.`` that upstream's converter asks for."""
PIXTRAL = ("llava", "mistral3")
"""Upstream drops the row of ``[IMG_BREAK]``, without which llama.cpp does not load the file."""
NAMED = Naming(model_name="M")
IMG_BREAK = "v.token_embd.img_break"


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model of a family, made once."""
    root = tmp_path_factory.mktemp("sighted")

    def of(family: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return root / family if (root / family).is_dir() else tiny_sighted(root / family, family)

    return of


def ours(model: Path, out: Path, **settings: Any) -> Path:
    convert(model, out, naming=replace(NAMED, part=ModelPart.PROJECTOR), **settings)
    return out


def theirs(model: Path, out: Path, dtype: str = "GUESSED") -> Path:
    """Upstream's converter as ``--mmproj`` runs it."""
    upstream = load_upstream()
    hparams = upstream.conversion.ModelBase.load_hparams(model, False)
    architecture = upstream.conversion.get_model_architecture(hparams, upstream.conversion.ModelType.MMPROJ)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model_class = upstream.model_class(architecture, ModelPart.PROJECTOR)
        model_class(model, upstream.gguf.LlamaFileType[dtype], out, model_name="M").write()
    return out


def with_older_names(model: Path, directory: Path) -> Path:
    """The same model as transformers 4 named its tower."""
    shutil.copytree(model, directory)
    weights = load_file(directory / "model.safetensors")
    named = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()}
    save_file(named, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {*FLAT_TOWERS, *PIXTRAL}))
def test_file_is_upstreams(family: str, sighted: Callable[[str], Path], tmp_path: Path) -> None:
    model = sighted(family)
    assert ours(model, tmp_path / "ours.gguf").read_bytes() == theirs(model, tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("family", FLAT_TOWERS)
def test_tower_saved_by_transformers_5_is_that_of_the_older_names(
    family: str, sighted: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = theirs(with_older_names(sighted(family), tmp_path / family), tmp_path / "theirs.gguf")
    assert ours(sighted(family), tmp_path / "ours.gguf").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("family", PIXTRAL)
def test_pixtral_holds_the_row_that_upstream_drops(family: str, sighted: Callable[[str], Path], tmp_path: Path) -> None:
    model = sighted(family)
    metadata, tensors = read_gguf(ours(model, tmp_path / "ours.gguf", gguf_dtype="f32"))
    their_metadata, their_tensors = read_gguf(theirs(model, tmp_path / "theirs.gguf", "ALL_F32"))
    added = tokens_of(model)["[IMG_BREAK]"]
    embedding = load_file(model / "model.safetensors")["language_model.model.embed_tokens.weight"]
    assert set(tensors) - set(their_tensors) == {IMG_BREAK}
    assert torch.equal(tensors[IMG_BREAK], embedding[added].float())
    assert all(torch.equal(tensors[name], their_tensors[name]) for name in their_tensors)
    assert {key for key in metadata if metadata[key] != their_metadata.get(key)} <= {"general.size_label"}


def tokens_of(model: Path) -> dict[str, int]:
    described = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in described}


@pytest.mark.parametrize(("family", "targets"), [
    ("qwen2_vl", r".*visual\.(blocks|merger).*\.(qkv|proj|fc1|fc2|mlp\.[02])"),
    ("idefics3", r".*(vision_model|connector).*\.(q_proj|k_proj|v_proj|fc1|proj)"),
    ("gemma3", r".*vision_tower\.encoder.*\.(q_proj|v_proj|fc2)"),
])  # fmt: skip
def test_tuned_tower_is_what_peft_merges(
    family: str, targets: str, sighted: Callable[[str], Path], tmp_path: Path
) -> None:
    base = sighted(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(
            AutoModelForImageTextToText.from_pretrained(base, dtype="auto"),
            LoraConfig(r=4, lora_alpha=8, target_modules=targets),
        )
        torch.manual_seed(3)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        tuned.save_pretrained(tmp_path / "checkpoint-1")
        model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
        merged = tmp_path / base.name
        PeftModel.from_pretrained(model, tmp_path / "checkpoint-1").merge_and_unload().save_pretrained(merged)
    for file in (*base.glob("tokenizer*"), base / "preprocessor_config.json"):
        shutil.copy(file, merged)
    build_overlay(
        open_adapter(tmp_path / "checkpoint-1"), open_base_model(base), tmp_path / "o.safetensors", precision="base"
    )
    overlay = Overlay.load(tmp_path / "o.safetensors")
    made = ours(base, tmp_path / "ours.gguf", overlay=overlay).read_bytes()
    assert made == ours(merged, tmp_path / "merged.gguf").read_bytes()
    assert made != ours(base, tmp_path / "base.gguf").read_bytes()
    # the text model's file holds nothing of it, and is refused no more: the tower has a file of its own
    beside = plan_conversion(open_base_model(base), overlay=overlay, naming=Naming(part=ModelPart.PROJECTOR))[
        1
    ].left_out
    alone = plan_conversion(open_base_model(base), overlay=overlay, naming=Naming(projector_left_out=beside))[1]
    assert alone.notes == ()


@pytest.mark.parametrize("targets", [r".*\.(q_proj|qkv)", r".*\.qkv"])
def test_exported_adapter_names_the_trained_tower_that_it_leaves_out(
    targets: str, sighted: Callable[[str], Path], tmp_path: Path
) -> None:
    base = sighted("qwen2_vl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
        tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
        tuned.save_pretrained(tmp_path / "checkpoint-1")
    opened = open_base_model(base)
    pairs = normalise_for_export(open_adapter(tmp_path / "checkpoint-1"), opened)
    if "q_proj" not in targets:
        with pytest.raises(PackagingError, match="none of it is trained"):
            export_lora(pairs, opened, tmp_path / "lora.gguf", naming=Naming(model_name="A"))
        return
    result = export_lora(pairs, opened, tmp_path / "lora.gguf", naming=Naming(model_name="A"))
    assert set(read_gguf(result.path)[1]) == {f"blk.{n}.attn_q.weight.lora_{part}" for n in (0, 1) for part in "ab"}
    assert len(result.left_out) == 4
    (note,) = result.notes
    assert "not in the LoRA file: " in note
    assert ".attn.qkv.weight" in note


def test_types_on_request(sighted: Callable[[str], Path], tmp_path: Path) -> None:
    model = sighted("qwen2_vl")
    for dtype, name in (("f32", "ALL_F32"), ("f16", "MOSTLY_F16"), ("q8_0", "MOSTLY_Q8_0")):
        made = ours(model, tmp_path / f"{dtype}.gguf", gguf_dtype=dtype)
        assert made.read_bytes() == theirs(model, tmp_path / f"their-{dtype}.gguf", name).read_bytes(), dtype


def test_pair_says_the_same_of_itself(sighted: Callable[[str], Path], tmp_path: Path) -> None:
    model = sighted("qwen2_vl")
    convert(model, tmp_path / "text.gguf", naming=NAMED)
    text, _ = read_gguf(tmp_path / "text.gguf")
    projector, _ = read_gguf(ours(model, tmp_path / "mmproj.gguf"))
    keys = ("general.name", "general.basename", "general.finetune")
    assert [projector.get(key) for key in keys] == [text.get(key) for key in keys]
    assert projector["general.type"] == "mmproj"
    assert text["general.name"] == "M"


def test_size_is_known_before_anything_is_made(sighted: Callable[[str], Path], tmp_path: Path) -> None:
    model = sighted("qwen2_vl")
    convert(model, tmp_path / "mmproj.gguf", naming=Naming(describe(model), part=ModelPart.PROJECTOR))
    assert predict_projector_bytes(model) == (tmp_path / "mmproj.gguf").stat().st_size
    assert predict_projector_bytes(tiny_base(tmp_path / "blind")) is None
    assert predict_projector_bytes(tmp_path / "mmproj.gguf") is None


def test_encoder_with_fewer_layers_than_announced_is_refused(sighted: Callable[[str], Path], tmp_path: Path) -> None:
    model = shutil.copytree(sighted("qwen2_vl"), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not re.search(r"visual\.blocks\.[23]\.", name)}
    save_file(kept, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        PackagingError, match=r"announces 4 encoder layers, and the weights lack layers? 2, 3"
    ) as refused:
        ours(model, tmp_path / "out.gguf")
    assert refused.value.code is ErrorCode.PROJECTOR_INVALID


def test_a_text_model_and_an_unknown_encoder_are_told_apart() -> None:
    text = {"architectures": ["LlamaForCausalLM"]}
    unknown = {"architectures": ["NobodyForConditionalGeneration"], "vision_config": {"depth": 2}}
    known = {"architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {"depth": 2}}
    assert [senses_of(config).has_projector for config in (text, unknown, known)] == [False, False, True]
    assert "has no projector" in no_projector(senses_of(text), text).message
    assert "no projector of NobodyForConditionalGeneration" in no_projector(senses_of(unknown), unknown).message


@pytest.mark.parametrize("family", ["gemma3", "idefics3", "llava", "qwen2_audio"])
def test_llama_cpp_answers_about_a_picture_or_a_sound(
    family: str, sighted: Callable[[str], Path], tmp_path: Path
) -> None:
    model = sighted(family)
    convert(model, tmp_path / "text.gguf", naming=NAMED)
    said = prove_projector(Question(str(tmp_path / "text.gguf")), ours(model, tmp_path / "mmproj.gguf"))
    assert said.endswith("to a sound" if family == "qwen2_audio" else "to a picture")


def test_projector_of_another_model_is_refused(sighted: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.tiny import tiny_base

    convert(tiny_base(tmp_path / "other", hidden_size=32), tmp_path / "text.gguf", naming=NAMED)
    with pytest.raises(PackagingError) as refused:
        prove_projector(Question(str(tmp_path / "text.gguf")), ours(sighted("qwen2_vl"), tmp_path / "mmproj.gguf"))
    assert refused.value.code is ErrorCode.OUTPUT_DOES_NOT_LOAD

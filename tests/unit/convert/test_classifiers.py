"""Adapters of classifiers and encoders: merged as PEFT does it, their heads in the file, whatever class the base is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from tests.field.vocabularies import FAMILIES
from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from tests.unit.convert.convert_samples import read_gguf, upstream_convert
from tests.unit.convert.test_convert_equality import assert_same_file
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.models.convert.upstream import supported_architectures

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open

_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_XLMR = {
    **_SMALL, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip
_BERT = {**_SMALL, "pad_token_id": 0}
_MODERN = {**_SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_QWEN = {**_SMALL, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# class of the base -> tokenizer, settings
BASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "BertForPreTraining": ("bert", _BERT),
    "BertForMaskedLM": ("bert", _BERT),
    "BertForSequenceClassification": ("bert", {**_BERT, "num_labels": 3}),
    "BertModel": ("bert", _BERT),
    "XLMRobertaForMaskedLM": ("xlm-roberta", _XLMR),
    "XLMRobertaModel": ("xlm-roberta", _XLMR),
    "ModernBertForMaskedLM": ("gpt2-bos", _MODERN),
    "Qwen3ForCausalLM": ("llama", _QWEN),
}


def save_base(name: str, directory: Path, dtype: torch.dtype) -> Path:
    family, settings = BASES[name]
    directory.mkdir(parents=True)
    tokens = FAMILIES[family](directory)
    torch.manual_seed(4)
    model = getattr(transformers, name)
    made = model(model.config_class(vocab_size=tokens, **settings)).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    made.save_pretrained(directory)
    return directory


def save_adapter(base: Path, directory: Path, auto: Any, task_type: str, **settings: Any) -> Path:
    targets = settings.pop("target_modules", ["query", "value"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(9)
        model = auto.from_pretrained(base, dtype="auto", **settings)
        tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type=task_type))
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        tuned.save_pretrained(directory)
    return directory


def peft_merge(base: Path, adapter: Path, directory: Path, auto: Any, **settings: Any) -> Path:
    """The merged model as PEFT and transformers write it, with the tokenizer of the base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto.from_pretrained(base, dtype="auto", **settings)
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(directory)
    for file in base.iterdir():
        if not file.name.startswith(("model", "config")):
            shutil.copy(file, directory)
    return directory


def merged_here(base: Path, adapter: Path, out: Path, **options: Any) -> Path:
    model = open_base_model(base)
    overlay = out.with_suffix(".overlay")
    build_overlay(open_adapter(adapter), model, overlay, precision="base", classes=supported_architectures())
    convert(base, out, overlay=Overlay.load(overlay), naming=Naming(model_name="M"), **options)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("base", "labels"),
    [
        ("BertForPreTraining", 3),
        ("BertForSequenceClassification", 3),
        ("BertModel", 1),
        ("XLMRobertaForMaskedLM", 1),
        ("XLMRobertaModel", 3),
        ("ModernBertForMaskedLM", 3),
    ],
)
def test_a_classifier_s_head_is_in_the_file(base: str, labels: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where the base is a plain encoder: the file is what upstream makes of PEFT's merged classifier."""
    auto, directory = transformers.AutoModelForSequenceClassification, save_base(base, tmp_path / "base", dtype)
    adapter = save_adapter(
        directory, tmp_path / "run" / "checkpoint-1", auto, "SEQ_CLS", num_labels=labels,
        target_modules=["Wqkv"] if "Modern" in base else ["query", "value"],
    )  # fmt: skip
    ours = merged_here(directory, adapter, tmp_path / "ours.gguf")
    merged = peft_merge(directory, adapter, tmp_path / "merged", auto, num_labels=labels)
    tensors = read_gguf(ours)[1]
    assert {"cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias"} & tensors.keys()
    assert tensors["cls.output.weight"].numel() == labels * 64
    if "Bert" in base and "Modern" not in base:
        assert "cls.weight" in tensors  # upstream leaves the pooler out, which the head needs
        return
    assert_same_file(ours, upstream_convert(merged, tmp_path / "theirs.gguf"))


@pytest.mark.parametrize("base", ["BertForMaskedLM", "BertModel", "XLMRobertaForMaskedLM", "XLMRobertaModel"])
def test_an_adapter_of_an_encoder_merges_whatever_class_the_base_is(base: str, tmp_path: Path) -> None:
    """PEFT trains the plain encoder, whose names lack what the class with a head puts before them."""
    auto, directory = transformers.AutoModel, save_base(base, tmp_path / "base", torch.bfloat16)
    adapter = save_adapter(directory, tmp_path / "run" / "checkpoint-1", auto, "FEATURE_EXTRACTION")
    ours = merged_here(directory, adapter, tmp_path / "ours.gguf")
    merged = peft_merge(directory, adapter, tmp_path / "merged", auto)
    assert_same_file(ours, upstream_convert(merged, tmp_path / "theirs.gguf"))


def test_a_part_of_the_head_that_nobody_saved_is_refused_by_name(tmp_path: Path) -> None:
    """BERT for masked tokens has no pooler: the classifier was trained on one drawn at random."""
    auto, base = (
        transformers.AutoModelForSequenceClassification,
        save_base("BertForMaskedLM", tmp_path / "b", torch.float32),
    )
    adapter = save_adapter(base, tmp_path / "run" / "checkpoint-1", auto, "SEQ_CLS", num_labels=3)
    with pytest.raises(
        PackagingError, match=r"bert\.pooler\.dense\.weight of it is in neither the adapter nor"
    ) as caught:
        merged_here(base, adapter, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.ADAPTER_MISMATCH


def test_a_head_of_a_class_that_is_not_converted_is_refused_by_name(tmp_path: Path) -> None:
    auto, base = (
        transformers.AutoModelForSequenceClassification,
        save_base("Qwen3ForCausalLM", tmp_path / "b", torch.float32),
    )
    targets = ["q_proj", "v_proj"]
    adapter = save_adapter(base, tmp_path / "c", auto, "SEQ_CLS", num_labels=3, target_modules=targets)
    with pytest.raises(PackagingError) as caught:
        merged_here(base, adapter, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.ADAPTER_MISMATCH
    assert "'score' (task_type SEQ_CLS)" in caught.value.message
    assert "Qwen3ForSequenceClassification is not among what is converted" in caught.value.message


def test_labels_are_those_beside_the_adapter(tmp_path: Path) -> None:
    auto, base = transformers.AutoModelForSequenceClassification, save_base("BertModel", tmp_path / "b", torch.float32)
    adapter = save_adapter(base, tmp_path / "c", auto, "SEQ_CLS", num_labels=3)
    (adapter / "config.json").write_text('{"id2label": {"0": "good", "1": "bad", "2": "ugly"}}')
    metadata = read_gguf(merged_here(base, adapter, tmp_path / "out.gguf"))[0]
    assert metadata["bert.classifier.output_labels"] == ["good", "bad", "ugly"]


def test_labels_beside_an_adapter_in_the_form_of_the_hubs_cache(tmp_path: Path) -> None:
    """Every file of a snapshot is a link; one that leads out of the roots is refused, as any other file's."""
    auto, base = transformers.AutoModelForSequenceClassification, save_base("BertModel", tmp_path / "b", torch.float32)
    adapter = save_adapter(base, tmp_path / "hub" / "snapshots" / "0", auto, "SEQ_CLS", num_labels=3)
    (blobs := tmp_path / "hub" / "blobs").mkdir()
    (adapter / "config.json").write_text('{"id2label": {"0": "good", "1": "bad", "2": "ugly"}}')
    for file in sorted(adapter.iterdir()):
        (adapter / file.name).rename(blobs / f"digest-of-{file.name}")
        file.symlink_to(Path("../../blobs") / f"digest-of-{file.name}")

    def labels(roots: Roots) -> Any:
        opened = open_adapter(adapter, allowed_roots=roots)
        classes = supported_architectures()
        build_overlay(opened, open_base_model(base), tmp_path / "overlay", precision="base", classes=classes)
        return Overlay.load(tmp_path / "overlay").config_changes()["id2label"]

    assert labels(Roots.only(tmp_path)) == {"0": "good", "1": "bad", "2": "ugly"}
    (adapter / "config.json").unlink()
    (outside := tmp_path.parent / f"{tmp_path.name}-outside.json").write_text('{"id2label": {}}')
    (adapter / "config.json").symlink_to(outside)
    with pytest.raises(PackagingError) as caught:
        labels(Roots.only(tmp_path))
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_where_no_head_is_at_stake_transformers_is_not_imported(tmp_path: Path) -> None:
    """It takes seconds, and names alone say where plain LoRA goes."""
    base = write_base(tmp_path / "base", {f"{Q}.weight": torch.zeros(4, 3)})
    adapter = write_adapter(tmp_path / "adapter", pair(Q, [[1.0, 2.0, 3.0]], [[1.0], [0.0], [0.0], [1.0]]))
    program = """
import sys
from pathlib import Path
from worker.models.adapters import build_overlay, open_adapter
from worker.models.checkpoint import open_base_model
base, adapter, out = map(Path, sys.argv[1:])
build_overlay(open_adapter(adapter), open_base_model(base), out, precision="base", classes={"BertModel"})
print("transformers" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(base), str(adapter), str(tmp_path / "overlay")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"

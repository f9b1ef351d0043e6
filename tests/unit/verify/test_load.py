"""Files that llama.cpp refuses are refused with its own reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_client.errors import ErrorCode, PackagingError
from worker.verify.ask import Question
from worker.verify.load import generate


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

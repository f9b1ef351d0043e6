"""An exported adapter on the base model answers as the merged model does, in llama.cpp, on real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api_client.contract.request import Options, PackagingRequest
from tests.harness import run_stages
from worker.models.verify.ask import Question
from worker.models.verify.load import generate

pytestmark = pytest.mark.e2e
PROMPT = "The three primary colours are"


def test_adapter_on_base_answers_as_the_merged_model(smollm2: Path, smollm2_adapter: Path, tmp_path: Path) -> None:
    def package(name: str, **fields: Any) -> Path:
        fields |= {"gguf_dtype": "f32", "evaluation": "off"}
        request = PackagingRequest(base_model=smollm2, output_dir=tmp_path / name, **fields)
        run_stages(request, tmp_path / f"scratch-{name}")
        return next((tmp_path / name).glob("*.gguf"))

    base = package("base", template="custom", options=Options(merge_lora=False, quantize=False))
    merged = package("merged", template="merge", checkpoint=smollm2_adapter)
    adapter = package("adapter", template="lora_only", checkpoint=smollm2_adapter)

    def answer(model: Path, lora: Path | None = None) -> str:
        return generate(Question(str(model), PROMPT, lora=str(lora) if lora else None, max_tokens=12))

    assert answer(base, adapter) == answer(merged)
    assert answer(base) != answer(merged)
    assert adapter.stat().st_size < merged.stat().st_size / 10
